"""The paper's claims, shown again: data (`settings`), what has to run (`jobs`), and what comes out
(`claims`, `report`)."""
