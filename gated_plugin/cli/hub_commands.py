"""Commands about dictionaries on a Hub: publish, fetch, list, check, describe, convert, serve."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gated_plugin.cli import output
from gated_plugin.cli.commands import AsJson, Quiet, app, reporter, silenced
from gated_plugin.cli.output import answer, chosen
from gated_plugin.errors import Interrupted

RepoId = Annotated[str, typer.Argument(help="A repository, such as org/name.", show_default=False)]
Source = Annotated[
    str, typer.Argument(help="A repository, such as org/name, or a folder.", show_default=False)
]
SaeId = Annotated[
    str | None,
    typer.Argument(help="An SAE, such as resid_post/layer_20/width_131k/l0_67; all by default."),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit; the newest of main by default.")
]
FIGURES = {"l0": "L0", "loss_recovered": "loss recovered", "gamma": "γ", "alive": "alive"}


@app.command()
def push(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; each becomes an SAE of the repository.")
    ],
    repo: Annotated[
        str | None,
        typer.Option(help="The repository, such as org/name; yours of the run's name by default."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create it as a private one.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything but send, and say what would be sent.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Publish runs: fold, check, compare in plain SAELens, one commit, check the remote hashes.

    gated-hub push runs/quickstart --repo me/gated-books
    """
    from gated_plugin.hub.publish import publish
    from gated_plugin.runs import Run

    silent = silenced(as_json, quiet)
    with finished_by_the_same_command():
        published = publish(
            [Run.open(run) for run in runs],
            repo,
            private=private,
            dry_run=dry_run,
            quiet=silent,
            report=reporter(silent),
        )
    figures = {**asdict(published), "load": published.snippet}
    if not as_json:
        figures["sent"] = _files_and_bytes(published.sent)
    answer(chosen(as_json, quiet), figures, "Would be sent." if dry_run else "Published.")


@app.command()
def pull(
    repo_id: RepoId,
    sae_id: SaeId = None,
    revision: Revision = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; the Hugging Face cache by default.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch SAEs; every file is checked by its hash, and what broke off is gone on with.

    gated-hub pull me/gated-books resid_post/layer_0/width_2k/l0_40 --out dictionaries
    """
    from gated_plugin.hub.pull import pull as run_pull

    silent = silenced(as_json, quiet)
    with finished_by_the_same_command():
        pulled = run_pull(
            repo_id, sae_id, revision=revision, out=out, report=reporter(silent), quiet=silent
        )
    figures = {**pulled._asdict(), "folder": str(pulled.folder)}
    answer(chosen(as_json, quiet), figures, "Pulled.")


@app.command("list")
def list_(
    repo_id: Annotated[
        str | None, typer.Argument(help="List the SAEs of this repository.", show_default=False)
    ] = None,
    org: Annotated[
        str | None, typer.Option(help="Only repositories of this user or organisation.")
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="Only repositories with this in their name.")
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """List the gated dictionaries on a Hub, or the SAEs of one repository.

    gated-hub list --org me
    gated-hub list me/gated-books
    """
    from gated_plugin.hub import catalogue

    silenced(as_json, False)
    form = chosen(as_json, False)
    if repo_id is None:
        found = [each._asdict() for each in catalogue.repositories(org, filter_)]
        columns = {"repo_id": "repository", "saes": "SAEs", "base_model": "language model"}
        output.table(form, "repositories", found, {**columns, "last_modified": "changed"})
    else:
        entries = catalogue.saes(repo_id, revision).saes
        output.table(form, "saes", entries, {"id": "id", **FIGURES, "hook": "hook point"})


@app.command()
def show(
    repo_id: RepoId,
    sae_id: Annotated[str, typer.Argument(help="One of `gated-hub list org/name`.")],
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Print all that the index of a repository says of one SAE.

    gated-hub show me/gated-books resid_post/layer_0/width_2k/l0_40
    """
    from gated_plugin.hub import catalogue

    silenced(as_json, False)
    sha, entry = catalogue.one(repo_id, sae_id, revision)
    figures = {**entry, "revision": sha}
    answer(chosen(as_json, False), figures if as_json else _flat(figures))


@app.command()
def verify(
    source: Source,
    sae_id: SaeId = None,
    revision: Revision = None,
    paper: Annotated[
        str | None,
        typer.Option(help="Beside the rows of the paper: gemma-7b or pythia-2.8b."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check SAEs against their certificates: hashes, soundness, and plain SAELens' numbers.

    gated-hub verify me/gated-books
    """
    from gated_plugin.hub.cards import parity
    from gated_plugin.hub.cards.description import entries_of
    from gated_plugin.hub.checking import check

    silent = silenced(as_json, quiet)
    rows = parity.parity(entries_of(source, sae_id, revision), paper) if paper else []
    checked = check(source, sae_id, revision=revision, quiet=silent, report=reporter(silent))
    figures: dict[str, Any] = {"verified": [asdict(each) for each in checked]}
    if as_json:
        answer(chosen(as_json, quiet), figures | ({"paper": parity.records(rows)} if paper else {}))
        return
    columns = {"sae_id": "verified", "files": "files", "max_abs_diff": "differs by"}
    columns |= {"certified_diff": "certified"}
    output.table(chosen(as_json, quiet), "verified", figures["verified"], columns)
    if rows and not quiet:
        output.text("\n" + parity.table(rows))


@app.command()
def card(
    source: Source,
    revision: Revision = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write it to, where the Notes of the old one stay."),
    ] = None,
    saelens_entry: Annotated[
        bool, typer.Option("--saelens-entry", help="Its entry for SAELens' directory instead.")
    ] = False,
) -> None:
    """Print the card of a repository, of a pulled folder, or of a run that was prepared.

    gated-hub card me/gated-books
    gated-hub card me/gated-books --saelens-entry
    """
    from gated_plugin.hub.cards.description import card_of, saelens_entry_of

    content = (
        saelens_entry_of(source, revision) if saelens_entry else card_of(source, revision, out)
    )
    if out is None:
        output.text(content)
    else:
        from gated_plugin.runs import beside

        out = out / "README.md" if out.is_dir() else out
        with beside(out) as unfinished:
            unfinished.write_text(content, encoding="utf-8")


@app.command()
def convert(
    source: Source,
    to: Annotated[
        str,
        typer.Option(help="saelens, jumprelu, dictionary_learning or bf16.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    activations: Annotated[
        Path | None, typer.Option(help="Safetensors file with `activations`, to compare on.")
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a gated dictionary in another format, and say how exact that is.

    gated-hub convert runs/quickstart --to jumprelu --out twin
    gated-hub convert dictionary/ae.pt --to saelens --out mine
    """
    from gated_plugin.convert import convert as run_convert

    silent = silenced(as_json, quiet)
    converted = run_convert(
        source,
        to,
        out,
        activations=activations,
        revision=revision,
        quiet=silent,
        report=reporter(silent),
    )
    figures = converted.record if as_json else converted.figures
    answer(chosen(as_json, quiet), figures, f"Converted into {out}.")


@app.command()
def serve(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder that keeps its repositories.")
    ] = Path("runs/hub"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8899,
    host: Annotated[
        str, typer.Option(help="Address to listen at; other than 127.0.0.1, others reach it.")
    ] = "127.0.0.1",
) -> None:
    """Serve a private Hub on this computer alone, until Ctrl-C.

    gated-hub serve --port 8899
    """
    import threading

    from gated_plugin.hub.local import LocalHub

    with LocalHub(folder, port, host=host) as hub:
        print(f"Local hub at {hub.url}, kept in {folder}. In another terminal:\n")
        print(f"  export HF_ENDPOINT={hub.url}")
        print(f"  export HF_TOKEN=$(cat {shlex.quote(str(folder / 'token'))})")
        print("  export HF_HUB_DISABLE_XET=1  # for other tools than gated-hub")
        print(f"\n{folder / 'read-token'} holds a token that may only read.", flush=True)
        threading.Event().wait()


@contextmanager
def finished_by_the_same_command() -> Iterator[None]:
    """Says so, where the user interrupts."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("Stopped; give the same command again, which finishes it.") from None


def _files_and_bytes(sent: Mapping[str, int]) -> str:
    return f"{len(sent)} files, {sum(sent.values()):,} bytes" if sent else "nothing: it is there"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
