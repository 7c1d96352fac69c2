import json
from pathlib import Path
import torch, csv
from torch import Tensor
from tests.integration import test_processes as tp
from tests.integration.test_processes import fit as pfit, SETTINGS, ODD
from tests.integration.test_precision import rounds
def dist(one, other, at=""):
    if isinstance(one, dict):
        for k in one: yield from dist(one[k], other[k], f"{at}/{k}")
    elif isinstance(one, list):
        for i,(a,b) in enumerate(zip(one, other)): yield from dist(a,b,f"{at}/{i}")
    elif isinstance(one, Tensor|float):
        a, b = torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other)
        yield float(((a-b).abs()/a.abs().clamp_min(1)).max()), at
def test_processes(fit, tiny_yaml, cache_dir, tmp_path_factory, tmp_path):
    run = pfit.__wrapped__ if hasattr(pfit,'__wrapped__') else pfit._get_wrapped_function()
    f = run(tiny_yaml, cache_dir, tmp_path_factory)
    a = f(tmp_path/"1"); b = f(tmp_path/"2", ranks=2)
    s = [torch.load(x/"round=0001.ckpt", weights_only=True) for x in (a,b)]
    found = sorted((d for k in tp.COMPARED for d in dist(s[0][k], s[1][k], k)), reverse=True)
    print("PROBE ranks", found[:4])
def test_precision(fit, fitted, tmp_path):
    half = fit(tmp_path, "--trainer.precision", "bf16-mixed")
    out = []
    for key, r in zip(["server/warmup/loss", "clients/kitchen/private/loss", "clients/hall/private/loss"], (0,1,1)):
        x, y = rounds(fitted.folder)[r][key], rounds(half.folder)[r][key]
        out.append(abs(x-y)/x)
    print("PROBE bf16", out)
def test_said(fit, fitted, mlecs, tiny_yaml):
    path = mlecs("predict", "--config", tiny_yaml, "--trainer.default_root_dir", fitted.folder.parents[1], "--ckpt_path", "last", "--trainer.limit_test_batches", "null", "--data.eval_batch_size", "360").out.strip()
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for party in ("kitchen", "hall", "server"):
        said = [r["prediction"] for r in rows if r["party"] == party]
        print("PROBE said", party, len(set(said)), sum(not s for s in said))
