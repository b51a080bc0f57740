"""VMamba's network: four directions by hand, published sizes, official files under any of their names, refusals."""

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tbkd_utils.curvature.products import Graph
from tbkd_utils.errors import ModelError
from tbkd_utils.localization.heatmaps import compute_heatmaps, grad_cam
from tbkd_utils.models.losses import build_loss
from tbkd_utils.models.module import TrainingModule
from tbkd_utils.models.networks import NETWORKS, Network, build_network, early_layers
from tbkd_utils.models.options import TrainingOptions
from tbkd_utils.models.vssm import (
    SHORTEST,
    SS2D,
    VARIANTS,
    VSSM,
    Block,
    Variant,
    cross_merge,
    cross_scan,
    official_state,
    variant_of,
)

SMALL = Variant(width=8, depths=(1, 1, 2, 1))
State = dict[str, Tensor]


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pictures(count: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def network(variant: Variant = SMALL, seed: int = 0) -> VSSM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VSSM(variant, 3).eval()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small VSSM that is declared as the large ones are."""
    like = NETWORKS["vssm_tiny"]
    monkeypatch.setitem(NETWORKS, "vssm_small", Network(
        lambda outputs: VSSM(SMALL, outputs), like.head, like.features, layout=like.layout, stages=like.stages,
        pooled_linear=True, translate=lambda state: official_state(state, SMALL),
    ))  # fmt: skip
    return "vssm_small"


# --- four directions --------------------------------------------------------------------------------------------------


def test_directions_by_hand() -> None:
    maps = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).view(1, 2, 3, 1)
    found = ["".join(str(int(number)) for number in one) for one in cross_scan(maps)[:, 0, :, 0].T]
    assert found == ["123456", "142536", "654321", "635241"]


def test_merging_adds_the_four_in_place() -> None:
    maps = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cross_merge(cross_scan(maps), 3, 5), 4 * maps)


def test_each_direction_comes_back_to_its_own_place() -> None:
    """One sequence at a time, so that two mistakes cannot cancel."""
    maps = torch.arange(24.0).view(1, 4, 6, 1)
    sequences = cross_scan(maps)
    for direction in range(4):
        alone = torch.zeros_like(sequences)
        alone[:, :, direction] = sequences[:, :, direction]
        assert torch.equal(cross_merge(alone, 4, 6), maps)


def test_a_transposed_image_swaps_rows_and_columns() -> None:
    maps = torch.randn(1, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cross_scan(maps.transpose(1, 2)), cross_scan(maps)[:, :, [1, 0, 3, 2]])


# --- the network ------------------------------------------------------------------------------------------------------

PUBLISHED = {"vssm_tiny": 32_484_904, "vssm_tiny_s2l5": 30_705_832, "vssm_tiny_s1l8": 30_249_064}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_variant_has_its_published_size(name: str) -> None:
    with torch.device("meta"):
        model = VSSM(VARIANTS[name])
    assert size(model) == PUBLISHED[name]
    assert VARIANTS.keys() == PUBLISHED.keys()
    if name == "vssm_tiny":
        assert size(model) - size(model.classifier["head"]) == 31_715_904


@pytest.mark.parametrize(("width", "count"), [(96, 145_056), (192, 566_592), (384, 2_239_104), (768, 8_901_888)])
def test_a_block_has_its_size(width: int, count: int) -> None:
    assert size(Block(width, Variant(), 0.0)) == count


def test_the_official_names_and_shapes() -> None:
    """What the specification of the checkpoint lists of its first block, and what surrounds the blocks."""
    with torch.device("meta"):
        state = VSSM(Variant()).state_dict()
    d, r, n = 96, 6, 1
    block = {
        "norm.weight": (d,), "norm.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,),
        "op.in_proj.weight": (4 * d, d), "op.conv2d.weight": (2 * d, 1, 3, 3),
        "op.x_proj_weight": (4, r + 2 * n, 2 * d),
        "op.dt_projs_weight": (4, 2 * d, r), "op.dt_projs_bias": (4, 2 * d), "op.A_logs": (8 * d, n), "op.Ds": (8 * d,),
        "op.out_norm.weight": (2 * d,), "op.out_norm.bias": (2 * d,), "op.out_proj.weight": (d, 2 * d),
        "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,),
    }  # fmt: skip
    first = "layers.0.blocks.0."
    assert {k.removeprefix(first): tuple(v.shape) for k, v in state.items() if k.startswith(first)} == block
    assert {k: tuple(v.shape) for k, v in state.items() if k.startswith(("patch_embed", "classifier"))} == {
        "patch_embed.0.weight": (48, 3, 3, 3), "patch_embed.0.bias": (48,),
        "patch_embed.2.weight": (48,), "patch_embed.2.bias": (48,),
        "patch_embed.5.weight": (96, 48, 3, 3), "patch_embed.5.bias": (96,),
        "patch_embed.7.weight": (96,), "patch_embed.7.bias": (96,),
        "classifier.norm.weight": (768,), "classifier.norm.bias": (768,),
        "classifier.head.weight": (1000, 768), "classifier.head.bias": (1000,),
    }  # fmt: skip
    down = {k: tuple(v.shape) for k, v in state.items() if ".downsample." in k and k.endswith("weight")}
    assert down == {
        f"layers.{i}.downsample.{place}.weight": shape
        for i, width in enumerate((96, 192, 384))
        for place, shape in ((1, (2 * width, width, 3, 3)), (3, (2 * width,)))
    }


@pytest.mark.parametrize(("side", "expected"), [((224, 224), (7, 7)), ((256, 256), (8, 8)), ((72, 100), (3, 4))])
def test_maps_are_a_32nd_of_the_image(side: tuple[int, int], expected: tuple[int, int]) -> None:
    model, seen = network(), []
    model.classifier["norm"].register_forward_hook(lambda module, given, output: seen.append(output.shape))
    with torch.inference_mode():
        assert model(pictures(1, *side)).shape == (1, 3)
    assert seen == [(1, *expected, 64)]


@pytest.mark.parametrize("variant", [SMALL, Variant(8, (1, 1), states=3, ratio=1, gated=False)])
def test_ss2d_equals_its_formula(variant: Variant) -> None:
    """Written the other way round: channels first, one direction and one step at a time."""
    torch.manual_seed(0)
    op, inner = SS2D(8, variant).double(), 8 * variant.ratio
    nn.init.normal_(op.Ds)
    nn.init.normal_(op.A_logs)
    maps = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    x, z = op.in_proj(maps).split([inner, inner * variant.gated], dim=3)
    x = F.silu(op.conv2d(x.permute(0, 3, 1, 2)))  # (2, inner, 3, 4)
    places = np.arange(12).reshape(3, 4)
    orders = [places.ravel(), places.T.ravel(), places.ravel()[::-1], places.T.ravel()[::-1]]
    y = torch.zeros(2, inner, 12, dtype=torch.float64)
    for k, order in enumerate(orders):
        a = -op.A_logs[k * inner : (k + 1) * inner].exp()
        h = torch.zeros(2, inner, variant.states, dtype=torch.float64)
        for place in order:
            here = x.flatten(2)[:, :, place]
            given = here @ op.x_proj_weight[k].T
            dt, b, c = given[:, :1], given[:, 1 : 1 + variant.states], given[:, 1 + variant.states :]
            step = F.softplus(dt @ op.dt_projs_weight[k].T + op.dt_projs_bias[k])[..., None]
            h = torch.exp(step * a) * h + step * b[:, None] * here[..., None]
            y[:, :, place] += (h * c[:, None]).sum(2) + op.Ds[k * inner : (k + 1) * inner] * here
    normed = F.layer_norm(y.transpose(1, 2).reshape(2, 3, 4, inner), [inner], op.out_norm.weight, op.out_norm.bias)
    expected = op.out_proj(normed * F.silu(z) if variant.gated else normed)
    torch.testing.assert_close(op(maps), expected, rtol=0, atol=1e-12)


def test_how_it_starts() -> None:
    torch.manual_seed(0)
    op = SS2D(32, Variant(states=3))
    assert torch.equal(op.A_logs[5].exp().round(), torch.tensor([1.0, 2, 3]))
    assert bool((op.Ds == 1).all())
    steps = F.softplus(op.dt_projs_bias)
    assert SHORTEST * 0.999 <= steps.min() < 0.0015
    assert 0.07 < steps.max() <= 0.1001
    assert steps.log().mean().item() == pytest.approx(np.log(0.01), abs=0.2)  # log-uniform: the middle is 0.01
    assert op.dt_projs_weight.abs().max() <= 2**-0.5
    assert op.dt_projs_weight.abs().max() > 0.95 * 2**-0.5
    linear = network().layers[3].blocks[0].mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not linear.bias.any()


def test_stochastic_depth_grows_in_a_straight_line_and_rests_in_evaluation() -> None:
    model = VSSM(Variant(8, (1, 2, 2)), drop_path=0.4)
    rates = [block.drop_path.drop_prob for layer in model.layers for block in layer.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    images = pictures()
    with torch.no_grad():
        torch.manual_seed(0)
        assert not torch.equal(model.train()(images), model(images))
        assert torch.equal(model.eval()(images), model(images))


def test_images_do_not_see_each_other_and_layout_changes_nothing() -> None:
    model, images = network(), pictures(3)
    with torch.inference_mode():
        together = model(images)
        torch.testing.assert_close(together[1:2], model(images[1:2]), rtol=0, atol=1e-5)
        last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(together, last, rtol=0, atol=1e-5)
    assert together.std() > 0.01


def test_every_weight_learns() -> None:
    model = network().train()
    model(pictures()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_under_autocast_it_stays_near() -> None:
    model, images = network(), pictures()
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(images)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_its_hessian_by_double_backward_equals_differences_of_gradients() -> None:
    model, images = network(Variant(8, (1, 1))).double(), pictures(2, 16, 16).double()
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def loss() -> Tensor:
        return F.cross_entropy(model(images), torch.tensor([0, 1]))

    def moved(by: float) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for p, piece in zip(parameters, pieces, strict=True):
                p.add_(piece, alpha=by)
        return torch.autograd.grad(loss(), parameters)

    found = Graph(loss(), parameters, 2).product(pieces, keep=False)
    above, below = moved(1e-5), moved(-2e-5)
    for product, one, other in zip(found, above, below, strict=True):
        assert product is not None
        torch.testing.assert_close(product, (one - other) / 2e-5, rtol=0, atol=1e-4 * float(product.abs().max() + 1e-3))


# --- official checkpoints ---------------------------------------------------------------------------------------------


def older(state: State) -> State:
    """The same entries under the names of older files."""
    names = {
        r"^patch_embed\.0\.": "patch_embed.proj.", r"^patch_embed\.2\.": "patch_embed.norm.",
        r"(?<=\d)\.norm\.": ".ln_1.", r"\.op\.": ".self_attention.",
        r"^classifier\.norm\.": "norm.", r"^classifier\.head\.": "head.",
    }  # fmt: skip
    found = {}
    for key, entry in state.items():
        for pattern, name in names.items():
            key = re.sub(pattern, name, key)
        found[key] = entry
    return found


def as_convolutions(state: State) -> State:
    """The same entries as files of networks with channels first have them."""
    return {k: v[..., None, None] if v.ndim == 2 and k.endswith(".weight") else v for k, v in state.items()}


def body(state: State) -> State:
    return {key: entry for key, entry in state.items() if not key.startswith("classifier.head.")}


def save(content: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(content, dict)
        safetensors.torch.save_file({key: entry.contiguous() for key, entry in content.items()}, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("wrapped", ["alone", "wrapped", "safetensors"])
@pytest.mark.parametrize("form", ["official", "older", "convolutions"])
def test_a_file_of_any_form_gives_the_same_network(tmp_path: Path, small: str, form: str, wrapped: str) -> None:
    theirs = network(seed=5)
    state = {"official": dict, "older": older, "convolutions": as_convolutions}[form](theirs.state_dict())
    content = {"model": state, "optimizer": {"state": {}}, "epoch": 299} if wrapped == "wrapped" else state
    path = save(content, tmp_path / ("w.safetensors" if wrapped == "safetensors" else "w.pth"))
    model = build_network(small, 3, path, 0).eval()
    for key, entry in body(theirs.state_dict()).items():
        assert torch.equal(model.state_dict()[key], entry), key
    model.classifier["head"] = theirs.classifier["head"]
    with torch.inference_mode():
        assert torch.equal(model(pictures()), theirs(pictures()))


def test_the_older_names_are_other_names() -> None:
    """So that the test above has something to find."""
    state = network().state_dict()
    named = older(state)
    assert len(named) == len(state)
    assert {
        "patch_embed.proj.weight", "patch_embed.norm.bias", "norm.weight", "head.bias",
        "layers.2.blocks.1.ln_1.weight", "layers.0.blocks.0.self_attention.A_logs", "layers.0.blocks.0.norm2.weight",
    } <= named.keys()  # fmt: skip
    assert official_state(named, SMALL).keys() == state.keys()


@pytest.mark.parametrize("variant", [*VARIANTS.values(), SMALL, Variant(16, (1, 3), states=4, ratio=3, mlp_ratio=2)])
def test_the_variant_is_told_from_the_shapes(variant: Variant) -> None:
    with torch.device("meta"):
        assert variant_of(VSSM(variant).state_dict()) == variant


def test_a_file_of_another_variant_is_named(tmp_path: Path, small: str) -> None:
    with torch.device("meta"):
        today = VSSM(VARIANTS["vssm_tiny_s1l8"]).state_dict()
    with pytest.raises(ModelError, match=r"depths 2 2 8 2.*ratio 1, no gate; by name 'vssm_tiny_s1l8'.*depths 2 2 4 2"):
        official_state(today, VARIANTS["vssm_tiny"])
    path = save(network(Variant(8, (1, 1, 1, 1))).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth: .*depths 1 1 1 1.*by name not listed.*depths 1 1 2 1"):
        build_network(small, 3, path, 0)


@pytest.mark.parametrize(
    "content", [{}, {"conv1.weight": torch.zeros(8, 3, 7, 7)}, {"layers.0.blocks.0.op.Ds": torch.zeros(8)}]
)
def test_a_foreign_file_is_refused(tmp_path: Path, small: str, content: State) -> None:
    for stored in (content, {"model": content}):
        with pytest.raises(ModelError, match=r"w\.pth: these are no weights of a VSSM: expected .*in_proj\.weight"):
            build_network(small, 3, save(stored, tmp_path / "w.pth"), 0)


def test_what_is_missing_extra_or_misshapen_is_named(tmp_path: Path, small: str) -> None:
    state = dict(network().state_dict()) | {"extra.weight": torch.zeros(1), "patch_embed.7.bias": torch.zeros(3)}
    del state["layers.2.blocks.1.op.A_logs"]
    message = (
        r"1 missing \(e\.g\. layers\.2\.blocks\.1\.op\.A_logs\), 1 unknown \(e\.g\. extra\.weight\), "
        r"1 other shape \(e\.g\. patch_embed\.7\.bias\)"
    )
    with pytest.raises(ModelError, match=message):
        build_network(small, 3, save({"model": state}, tmp_path / "w.pth"), 0)


class Settings:
    """Stands for the configuration object in an official file."""


def test_a_checkpoint_with_an_object_in_it_says_how_to_save_the_weights_alone(tmp_path: Path, small: str) -> None:
    path = save({"model": network().state_dict(), "config": Settings()}, tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"w\.pth: cannot be read.*torch\.save\(checkpoint\['model'\], 'weights\.pth'\)"
    ):
        build_network(small, 3, path, 0)


# --- as a classifier --------------------------------------------------------------------------------------------------


def test_the_seed_draws_the_head_alone(small: str) -> None:
    first, again, other = (build_network(small, 2, "none", seed).state_dict() for seed in (42, 42, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert {key for key in first if not torch.equal(first[key], other[key])} == {
        "classifier.head.weight", "classifier.head.bias"
    }  # fmt: skip


def test_the_training_step_lowers_its_loss(small: str) -> None:
    """Bright and dark images, a few steps of the training module's own optimizer."""
    options = TrainingOptions(learning_rate=3e-3, frozen=early_layers(small, 1))
    loss = build_loss("cross_entropy", {"label_smoothing": 0.0})
    module = TrainingModule(options, build_network(small, 2, "none", 0), loss, None).train()
    adam = module.configure_optimizers()
    pixels = torch.randint(0, 128, (8, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    targets = torch.arange(8) % 2
    batch = module.on_after_batch_transfer(
        {"pixels": pixels + 100 * targets[:, None, None].byte(), "targets": targets}, 0
    )
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        adam.zero_grad()
        terms, _ = module._terms(batch)
        terms["loss"].backward()
        adam.step()
        losses.append(terms["loss"].item())
    assert losses[0] == pytest.approx(np.log(2), abs=0.3)
    assert losses[-1] < 0.1 * losses[0]


def test_grad_cam_has_its_closed_form(small: str) -> None:
    model, declared = build_network(small, 2, "none", 0).eval(), NETWORKS[small]
    ways = [grad_cam(declared, 1, relu=False, method=method) for method in ("auto", "captum")]
    found, expected = (compute_heatmaps(model, pictures(2, 96, 64), way) for way in ways)
    assert found.shape == (2, 3, 2)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_no_weights_can_be_had_by_name() -> None:
    with pytest.raises(ModelError, match="no weights 'imagenet' for vssm_tiny: expected none, or an existing file"):
        build_network("vssm_tiny", 2, "imagenet", 0)
