"""Published weights that a study judges in place of a training."""

import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import judging
from experiments import resnet_table3
from experiments.study import Settings, command, published


def test_published_weights_are_judged_in_place_of_a_training(tmp_path, monkeypatch):
    file, requests = tmp_path / "resnet50.h5", []
    file.write_bytes(b"weights")

    def judge(request, shown):
        requests.append(request)
        errors = {"top1_error": 0.25, "top1_interval": (0.2, 0.3), "top5_error": 0.08, "top5_interval": (0.0, 0.1)}
        member = dict(sha256=published.records.file_hash(str(file)), format="keras", model="resnet:50")
        row = dict(dataset=request.dataset, split=request.split, views=request.views, examples=50_000)
        published.records.append(request.results, row | errors | dict(members=[member]))

    monkeypatch.setattr(judging, "judge", judge)
    settings = Settings(str(tmp_path / "out"), data_dir="images", options={"weights": f"ResNet-50=keras:{file}"})
    record = command.perform(resnet_table3.STUDY, settings, collect=True)
    rows = [row for row in record["rows"] if row["ours"] is not None]
    assert {row["what"] for row in rows} == {"ResNet-50"} and len(rows) == 4
    assert all("published weights resnet50.h5 (keras), not trained here" in row["note"] for row in rows)
    assert "ResNet-50" not in record["not_run"] and len(record["not_run"]) == 7
    assert [request.views for request in requests] == ["ten_crop", "centre"]
    assert requests[0].models == ("resnet:50",) and requests[0].data_dir == settings.data_dir
    assert (requests[0].dataset, requests[0].split) == ("imagenet2012", "validation")
    command.perform(resnet_table3.STUDY, settings, collect=True)
    assert len(requests) == 2  # not judged again


@pytest.mark.parametrize(
    "text,message",
    [
        ("ResNet-34 A=keras:FILE", "expected LABEL=FORMAT:FILE"),
        ("ResNet-50=caffe:FILE", "expected LABEL=FORMAT:FILE"),
        ("ResNet-50", "expected LABEL=FORMAT:FILE"),
        ("VGG-16=keras:FILE", "model='vgg:16'"),
        ("ResNet-50=keras:FILE.missing", "expected a file"),
    ],
)
def test_weights_that_cannot_be_judged_are_refused(tmp_path, text, message):
    (tmp_path / "file.h5").touch()
    with pytest.raises(UserError, match=message):
        resnet_table3.STUDY.check({"weights": text.replace("FILE", str(tmp_path / "file.h5"))})


def test_weights_say_that_their_stride_is_another():
    assert "v1.5" in published.Weights("ResNet-50", "torchvision", "resnet:50", "a.pth").note
    assert "v1.5" not in published.Weights("ResNet-50", "keras", "resnet:50", "a.h5").note
    assert "v1.5" not in published.Weights("ResNet-34 B", "timm", "resnet:34", "a.pth").note
