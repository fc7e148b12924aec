"""Published weights that a study judges in place of a training."""

import json

import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation import judging, records
from experiments import resnet_table3, resnet_table4
from experiments.study import Settings, command, imagenet, judged, published

ERRORS = {"top1_error": 0.25, "top1_interval": (0.2, 0.3), "top5_error": 0.08, "top5_interval": (0.0, 0.1)}


def row(request, *members, **changed):
    """A row of a file of results that answers a request."""
    names = ("dataset", "split", "views", "precise_bn")
    found = {name: getattr(request, name) for name in names} | ERRORS | dict(examples=50_000, members=list(members))
    return found | changed


@pytest.mark.parametrize(
    ("study", "views", "others"), [(resnet_table3, ["ten_crop", "centre"], 7), (resnet_table4, ["multi_scale"], 4)]
)
def test_published_weights_are_judged_in_place_of_a_training(study, views, others, tmp_path, monkeypatch):
    file, requests, drawn = tmp_path / "resnet50.h5", [], []
    file.write_bytes(b"weights")

    def judge(request, shown):
        requests.append(request)
        member = dict(sha256=records.file_hash(str(file)), format="keras", model="resnet:50", step=0)
        records.append(request.results, row(request, member))

    monkeypatch.setattr(judging, "judge", judge)
    draw = imagenet.draw
    monkeypatch.setattr(imagenet, "draw", lambda *given: drawn.append(given) or draw(*given))
    settings = Settings(str(tmp_path / "out"), data_dir="images", options={"weights": f"ResNet-50=keras:{file}"})
    record = command.perform(study.STUDY, settings, collect=True)
    rows = [row for row in record["rows"] if row["ours"] is not None]
    assert {row["what"] for row in rows} == {"ResNet-50"} and len(rows) == 2 * len(views)
    assert all("published weights resnet50.h5 (keras), not trained here" in row["note"] for row in rows)
    assert "ResNet-50" not in record["not_run"] and len(record["not_run"]) == others
    assert [request.views for request in requests] == views
    assert requests[0].models == ("resnet:50",) and requests[0].data_dir == settings.data_dir
    assert (requests[0].dataset, requests[0].split) == ("imagenet2012", "validation")
    (_, _, labels, _, ours, said), place = drawn[0], list(study.PAPER).index("ResNet-50")
    assert [label for label in labels if label.endswith("*")] == ["ResNet-50*"] and "* published weights" in said
    assert ours[place] == (25, 8) and {pair for pair in ours if pair != ours[place]} == {(None, None)}
    command.perform(study.STUDY, settings, collect=True)
    assert len(requests) == len(views)  # not judged again


def test_a_row_answers_a_request_if_it_is_of_these_members_views_and_images(tmp_path, monkeypatch):
    request = judging.Request(dataset="d", split="test", views="centre", results=str(tmp_path / "results.jsonl"))
    one, other = dict(config_hash="a", step=3), dict(config_hash="b", step=3)
    monkeypatch.setattr(
        judging, "judge", lambda request, shown: records.append(request.results, mine | dict(top1_error=0.5))
    )
    mine = row(request, one, other)
    for wrong in (
        *(dict(members=members) for members in ([one], [other, one], [one, other, one], [one, other | dict(step=4)])),
        *(dict(views="ten_crop"), dict(split="train"), dict(dataset="e"), dict(precise_bn=5)),
    ):
        records.append(request.results, mine | wrong)
    found = judged.once(request, [one, other])
    assert found["top1_error"] == 0.5, "judged, as no row was of it"
    newest = mine | dict(members=[one | dict(workdir="a"), other], top1_error=0.125)
    records.append(request.results, newest)
    with open(request.results, "a") as file:
        file.write(json.dumps(mine)[:-5] + "\n")
    assert judged.once(request, [one, other])["top1_error"] == 0.125


def test_weights_are_read_before_the_other_networks_are_trained(tmp_path):
    (tmp_path / "broken.h5").write_bytes(b"no weights")
    options = {"weights": f"ResNet-50=keras:{tmp_path / 'broken.h5'}"}
    settings = Settings(str(tmp_path / "out"), data_dir=str(tmp_path), options=options)
    for study in (resnet_table3, resnet_table4):
        with pytest.raises(UserError, match="broken.h5"):
            command.perform(study.STUDY, settings)
    assert not list((tmp_path / "out").glob("trainings"))


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
