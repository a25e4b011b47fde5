"""Two processes with an exporter: one of them exports, and both get the path."""

import pytest

pytestmark = pytest.mark.slow(reason="starts programs of several processes")


def test_one_export_for_all_processes(programs, tmp_path):
    with programs.run(tmp_path, "training_programs:exports", model_dir="model", timeout=180) as program:
        first, second = program.results()
    assert first["paths"] == second["paths"]
    assert (first["step"], first["devices"]) == (second["step"], second["devices"]) == (4, 2)
    for name in ("latest", "final"):
        assert len(list((tmp_path / "model" / "export" / name).iterdir())) == 1
