"""The whole flow with real processes: what clients see, and what nobody may see."""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import skimage

from sealserve.broker.directory import open_broker
from sealserve.client import Anchor
from sealserve.client.images import load_image
from sealserve.provenance import Trust
from tests.conftest import ROOT
from tests.e2e.conftest import Flow

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

COFFEE = Path(skimage.__file__).parent / "data" / "coffee.png"


def test_a_photo_of_an_espresso_is_one_on_a_verified_server(flow: Flow) -> None:
    answer = flow.run(
        "predict", str(COFFEE), "--url", f"127.0.0.1:{flow.ports.grpc}", *flow.trust, "--json"
    ).result()
    best = answer["labels"][0]
    assert best["name"] == "espresso"
    assert best["probability"] > 0.9
    assert answer["verified"]["verdict"]["trusted"]


def test_the_trust_report_says_what_was_verified(flow: Flow) -> None:
    report = flow.run("trust", f"127.0.0.1:{flow.ports.grpc}", *flow.trust, "--json").result()
    names = [event["name"] for event in report["events"]]
    assert names == ["broker", "volume", "model", "model", "sealed"]
    assert report["td"]["simulated"]
    assert report["td"]["tcb_status"] == "UpToDate"
    text = flow.run("trust", f"127.0.0.1:{flow.ports.grpc}", *flow.trust).stdout
    assert "SIMULATION" in text
    assert "resnet50-v15-fp32" in text


def test_the_guest_checked_each_models_signature_because_the_record_says_so(flow: Flow) -> None:
    record = flow.run("volume", "record", "show", "owner/models.record.json", "--json").result()
    (signer,) = Trust.from_pem(record["provenance"]["signers"].encode()).names
    lines = [
        json.loads(line)
        for line in (flow.directory / "logs/guest.log").read_text().splitlines()
        if line.startswith("{")
    ]
    signed = {line["model"]: line["signer"] for line in lines if line["event"] == "model_signed"}
    assert signed == {"efficientnet-lite0": signer, "resnet50-v15-fp32": signer}


def test_tensorflows_own_stubs_get_tensorflows_own_numbers(
    flow: Flow, oracle: Path, tmp_path: Path
) -> None:
    picture, result = tmp_path / "picture.npy", tmp_path / "result.npz"
    np.save(picture, load_image(COFFEE)[np.newaxis])
    subprocess.run(
        [
            oracle,
            ROOT / "tests/e2e/call_lite0.py",
            str(flow.ports.grpc),
            flow.directory / "owner/tree/tls/server.crt",
            flow.directory / "owner/tree/models/efficientnet-lite0/1",
            picture,
            result,
        ],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    with np.load(result) as stored:
        assert stored["state"] == 30  # AVAILABLE
        assert stored["version"] == 1
        assert list(stored["inputs"]) == ["input"]
        outputs = {name[4:] for name in stored.files if name.startswith("own_")}
        assert outputs == {"logits", "probabilities"}
        for name in outputs:
            np.testing.assert_allclose(
                stored[f"served_{name}"], stored[f"own_{name}"], rtol=1e-4, atol=1e-4
            )


def test_the_rest_api_answers_over_tls_only(flow: Flow) -> None:
    context = ssl.create_default_context(cafile=flow.directory / "owner/tree/tls/server.crt")
    context.check_hostname = False  # the name is not in DNS here
    body = json.dumps({"instances": load_image(COFFEE)[np.newaxis].tolist()}).encode()
    address = f"127.0.0.1:{flow.ports.rest}/v1/models/efficientnet-lite0:predict"
    with urllib.request.urlopen(f"https://{address}", body, context=context) as answer:
        (prediction,) = json.load(answer)["predictions"]
    assert int(np.argmax(prediction["probabilities"])) == 967
    with pytest.raises(OSError, match=r"."):
        urllib.request.urlopen(f"http://{address}", body)


def test_the_benchmark_prints_the_original_systems_lines(flow: Flow) -> None:
    outcome = flow.run(
        "bench",
        "--url", f"grpc.tf.service.com:{flow.ports.grpc}",
        "--connect-to", f"127.0.0.1:{flow.ports.grpc}",
        "--crt", "owner/tree/tls/server.crt",
        "--batch", "1", "--cnum", "2", "--loop", "3",
    )  # fmt: skip
    *queries, summary = outcome.stdout.splitlines()
    assert len(queries) == 6
    for line in queries:
        assert re.fullmatch(
            r"query: secure channel, task [01], batch 1, loop_idx [012], "
            r"latency\(ms\) \d+\.\d, tps: \d+\.\d",
            line,
        )
    assert re.fullmatch(
        r"summary: cnum 2, batch 1, e2e time\(s\) \d+\.\d\d, "
        r"average latency\(ms\) \d+\.\d, tps: \d+\.\d",
        summary,
    )


def test_the_readmes_python_works_as_it_stands(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what the reader fills in is filled in: files, address, image, and the test root."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = code.replace("models.example.com:8500", f"127.0.0.1:{flow.ports.grpc}")
    code = code.replace("client-policy.yaml", "client/policy.yaml")
    code = code.replace('"collateral.json"', '"platform/collateral.json"')
    code = code.replace("sc.INTEL", "anchor")
    monkeypatch.chdir(flow.directory)
    names = {
        "anchor": Anchor.simulation(Path("platform/anchor.der").read_bytes()),
        "image": load_image(COFFEE)[np.newaxis],
    }
    exec(code, names)  # noqa: S102 - our own README
    assert int(np.argmax(names["outputs"]["probabilities"])) == 967  # type: ignore[call-overload]
    assert "bound in the quote" in capsys.readouterr().out


def test_a_client_that_trusts_another_volume_refuses(flow: Flow) -> None:
    policy = (flow.directory / "client/policy.yaml").read_text()
    other = re.sub(r"(name: volume\n\s*payload: \'?)[0-9a-f]{2}", r"\g<1>00", policy)
    assert other != policy
    (flow.directory / "client/other.yaml").write_text(other)
    options = [*flow.trust]
    options[options.index("client/policy.yaml")] = "client/other.yaml"
    outcome = flow.run("trust", f"127.0.0.1:{flow.ports.grpc}", *options, expect=3)
    assert "[policy.event_mismatch]" in outcome.stderr


def test_a_simulated_server_is_refused_under_intels_root(flow: Flow) -> None:
    options = flow.trust[: flow.trust.index("--simulation-anchor")]
    outcome = flow.run("trust", f"127.0.0.1:{flow.ports.grpc}", *options, expect=3)
    assert "[chain.wrong_root]" in outcome.stderr


def test_every_release_and_refusal_is_in_an_unbroken_audit_chain(flow: Flow) -> None:
    flow.run("audit", "verify", "--broker", "broker")
    shown = flow.run("audit", "show", "--broker", "broker", "--json").result()
    assert "released" in json.dumps(shown)


def test_cryptsetup_and_veritysetup_agree_with_the_volume(flow: Flow) -> None:
    volume = flow.directory / "cloud/models.seal"
    record = flow.run("volume", "record", "show", "owner/models.record.json", "--json").result()
    dump = subprocess.run(
        ["cryptsetup", "luksDump", volume], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"Version:\s+2\b", dump)
    assert re.search(r"cipher:\s+aes-xts-plain64", dump)
    assert re.search(r"sector:\s+4096", dump)
    verity = record["verity"]
    subprocess.run(
        [
            "veritysetup", "verify", volume, volume, verity["root_hash"], "--no-superblock",
            f"--salt={verity['salt']}", f"--data-blocks={verity['data_blocks']}",
            f"--hash-offset={verity['hash_offset']}", "--hash=sha256",
            "--data-block-size=4096", "--hash-block-size=4096",
        ],
        check=True,
    )  # fmt: skip


def test_the_volume_key_is_nowhere_but_in_memory(flow: Flow) -> None:
    """Neither a file, nor a command line, nor an environment of the flow holds it."""
    with open_broker(flow.directory / "broker") as broker:
        resource = broker.store.resource("models/demo")
        assert resource is not None
        key = broker.store.secret(resource.secret_id, resource.secret_version, broker.kek)
    assert len(key) == 32
    forms = [key, key.hex().encode(), base64.b64encode(key)]
    for path in flow.directory.rglob("*"):
        if path.is_file() and "volume-" not in str(path) and not _simulated_sysfs(path):
            content = path.read_bytes()
            assert not any(form in content for form in forms), path
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                content = (process / name).read_bytes()
            except OSError:
                continue
            assert not any(form in content for form in forms), process


def _simulated_sysfs(path: Path) -> bool:
    return any(part in ("kernel", "class") for part in path.parts)
