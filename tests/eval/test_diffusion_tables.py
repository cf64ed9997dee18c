"""The tables of the diffusion guide say what the records say."""

from vlm_eff.eval.diffusion_tables import against_fewer, denoising_quality_table
from vlm_eff.eval.record import Record

FEWER = [
    {"label": f"{steps} steps of UniPC", "kind": "fewer steps", "evaluations": float(steps), "psnr": float(30 + steps)}
    for steps in (5, 10)
]


def row(evaluations: float, psnr: float) -> dict[str, object]:
    quality = {"psnr_error": 0.1, "feature_distance": 0.2, "class_accuracy": 0.9, "frechet": 4.0}
    return {"label": "mine", "kind": "ours", "evaluations": evaluations, "psnr": psnr, **quality}


def test_the_rival_of_the_same_cost_is_interpolated() -> None:
    assert against_fewer(row(7.5, 40.0), FEWER) == 2.5
    assert against_fewer(row(10.0, 40.0), FEWER) == 0.0
    assert against_fewer(row(12.0, 40.0), FEWER) is None
    assert against_fewer(FEWER[0], FEWER) is None


def test_a_row_that_did_not_run_says_why() -> None:
    failed = {"label": "other", "kind": "peer", "steps": 20, "error": "ImportError: no module"}
    fewer = [one | row(one["evaluations"], one["psnr"]) | {"kind": "fewer steps"} for one in FEWER]
    config = {"steps": 20, "scheduler": "UniPC", "guidance": 2.0}
    record = Record("t", "1", "m", config, "cpu", 3, {"rows": [failed, row(7.5, 40.0), *fewer]})
    table = denoising_quality_table(record).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:6]] == ["mine", "mine", "`mine`", "other"]
    assert "did not run: ImportError: no module" in table[5] and "N = 3" in table[7] and "+2.5" not in table[4]
