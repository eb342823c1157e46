"""The paper's claims, shown again: data (`settings`, `arms`), what has to run (`jobs`), and what
comes out (`claims`, `report`)."""
