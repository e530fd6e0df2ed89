"""Guesses the kind and shape of a forward's arguments from their names and from the model's configuration.

An argument's name means the same in nearly all libraries (`input_ids`, `pixel_values`, `input_features`, `timestep`).
Sizes are read from the configuration, under the names that transformers, diffusers and the papers' own code use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from torch import nn

from opq.probing.facts import Facts
from opq.probing.forms import Form
from opq.probing.shapes import EMBEDDINGS, RECURRENT, TOKENS, entries, forms_of

VOCABULARY = 1000
"""How many token ids to draw from where the model does not say how many it has."""
RAW = 16_000
"""Length of a synthetic recording, in samples: one second."""
FRAMES = 128
"""Frames of a synthetic spectrogram where nothing says how many the model takes."""
CONTEXT = 77
"""Length of the encoded text that conditions a diffusion model, in tokens: that of CLIP's text encoder."""
LEVELS = 1000
"""How many noise levels a diffusion model has."""

Rule = Callable[[Facts, nn.Module], Iterator[Form]]


def named(name: str, facts: Facts, model: nn.Module) -> list[Form]:
    """Forms of an argument of this name, the likeliest first; none where name and configuration do not tell."""
    rule = next((rule for pattern, rule in RULES if re.fullmatch(pattern, name)), None)
    return [] if rule is None else list(dict.fromkeys(rule(facts, model)))


def guessed(name: str, model: nn.Module) -> list[Form]:
    """Forms that the model's layers can take, those of layers whose names resemble the argument's first."""
    found = entries(model)
    alike = [m for path, m in found if any(_alike(name, part) for part in path.split("."))]
    forms = [f for m in alike[:2] for f in forms_of(m, model)] + [
        f for _, m in found[:1] for f in list(forms_of(m, model))[:3]
    ]
    others = [next(forms_of(m, model)) for _, m in found[1:12]]
    return list(dict.fromkeys(forms + others))


def in_order(names: list[str], model: nn.Module) -> list[Form]:
    """Texts for several arguments, one for each table of embeddings in the order of both.

    None unless there are as many of these as of those, and no argument's name resembles that of a table.
    """
    tables = [(path, m) for path, m in entries(model) if isinstance(m, EMBEDDINGS)]
    told = any(_alike(name, part) for name in names for path, _ in tables for part in path.split("."))
    if len(names) < 2 or len(tables) != len(names) or told:
        return []
    return [Form("tokens", (TOKENS,), table.num_embeddings) for _, table in tables]


def _alike(argument: str, attribute: str) -> bool:
    """Whether one of two names of at least three letters is a part of the other."""
    return min(len(argument), len(attribute)) >= 3 and (argument in attribute or attribute in argument)


# --- text ------------------------------------------------------------------------------------


def _length(facts: Facts) -> int:
    most = facts.number("max_position_embeddings", "n_positions", "max_target_positions", "n_text_ctx") or TOKENS + 2
    return min(TOKENS, most - 2 if most > 8 else most)


def _tokens(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield from _ids(facts, model, ("text_config", "encoder"))


def _decoded(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield from _ids(facts, model, ("decoder", "decoder_config", "text_config"))


def _ids(facts: Facts, model: nn.Module, first: tuple[str, ...]) -> Iterator[Form]:
    vocabulary = facts.number("vocab_size", "n_vocab", "vocabulary_size", "num_tokens", first=first)
    embedding = next((m for _, m in entries(model) if isinstance(m, EMBEDDINGS)), None)
    if vocabulary is None and embedding is None:
        return
    yield Form("tokens", (_length(facts),), vocabulary or embedding.num_embeddings)  # type: ignore[union-attr]


def _mask(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield Form("ones", (_length(facts),))


def _segments(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield Form("tokens", (_length(facts),), facts.number("type_vocab_size") or 1)


def _places(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield Form("places", (_length(facts),))


# --- images ----------------------------------------------------------------------------------

_SEEING = ("vision_config", "encoder", "backbone_config")


def _pixels(facts: Facts, model: nn.Module) -> Iterator[Form]:
    """Images, or videos (frames, channels, height, width) where the configuration counts frames."""
    if not facts:
        return
    channels = facts.number("num_channels", "in_channels", "in_chans", first=_SEEING) or 3
    size = facts.sizes("image_size", "img_size", "crop_size", "sample_size", dims=2, first=_SEEING)
    frames = facts.number("num_frames", first=_SEEING)
    for height, width in dict.fromkeys([*([size] if size else []), (224, 224), (64, 64), (32, 32)]):
        yield from (Form("signal", (frames, channels, height, width)),) if frames else ()
        yield Form("signal", (channels, height, width))


# --- sound -----------------------------------------------------------------------------------

_HEARING = ("audio_config", "audio_encoder", "encoder", "encoder_config", "codec_config")


def _features(facts: Facts, model: nn.Module) -> Iterator[Form]:
    """Log-mel spectrograms: in Whisper's layout where the configuration has Whisper's names, then frames by bins."""
    bins = facts.number(
        *("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "feature_size", "n_mels"),
        *("num_mels", "n_mel_channels", "model_in_dim", "spectrogram_bins", "input_dim"),
        first=_HEARING,
    )
    if bins is None:
        return
    places = facts.number("max_source_positions", "n_audio_ctx", first=_HEARING)
    if places and facts.number("num_mel_bins", "n_mels", first=_HEARING):
        yield Form("mel", (bins, 2 * places))
    length = facts.number("max_length", "num_frames", first=_HEARING) or FRAMES
    side = facts.number("spec_size", first=_HEARING)
    if side:  # CLAP folds (1, frames, bins) into a square
        yield Form("fbank", (1, side * side // bins, bins))
    for frames in dict.fromkeys((length, FRAMES)):
        yield from (Form("fbank", (frames, bins)), Form("mel", (bins, frames)), Form("fbank", (1, frames, bins)))


def _recording(facts: Facts, model: nn.Module) -> Iterator[Form]:
    """Raw sound: standardised for encoders that convolve it, unchanged for codecs. Or a spectrogram, as AST takes."""
    channels, convolves = facts.number("audio_channels", first=_HEARING), facts.says("conv_kernel", "conv_stride")
    bins, length = facts.number("num_mel_bins", first=_HEARING), facts.number("max_length", first=_HEARING)
    if bins and length and not convolves:
        yield Form("fbank", (length, bins), scale=0.5)
    if channels:
        yield Form("speech", (channels, RAW))
    if convolves:
        yield Form("standard speech", (RAW,))
    if facts:
        yield from (Form("speech", (1, RAW)), Form("standard speech", (RAW,)))


def _spoken(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield from (Form("fbank", (TOKENS, bins)) for bins in filter(None, [facts.number("num_mel_bins")]))


# --- diffusion -------------------------------------------------------------------------------


def diffuses(model: nn.Module) -> bool:
    """Whether the model's class comes from the diffusers library."""
    return any(kind.__module__.startswith("diffusers.") for kind in type(model).__mro__)


def _noisy(facts: Facts, model: nn.Module) -> Iterator[Form]:
    """What a model of diffusers denoises: images or latents, videos, sequences, vectors."""
    if not diffuses(model):
        return
    channels = facts.number("in_channels", "latent_channels") or 3
    kind = type(model).__name__
    side = facts.number("sample_size") or 32
    height, width = facts.sizes("sample_size", dims=2) or (side, side)
    if "1D" in kind:
        yield from (Form("signal", (channels, n)) for n in dict.fromkeys((side, 256, 1024)))
    if "3D" in kind or "Temporal" in kind:
        yield from (Form("signal", (channels, 4, height, width)), Form("signal", (4, channels, height, width)))
    if (vector := facts.number("embedding_dim")) is not None:
        yield Form("signal", (vector,))
    for size in dict.fromkeys([(height, width), (32, 32), (64, 64), (16, 16)]):
        yield Form("signal", (channels, *size))
    yield Form("signal", (16, channels))


def _level(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield from (Form("tokens", (), LEVELS), Form("signal"))


def _context(facts: Facts, model: nn.Module) -> Iterator[Form]:
    width = facts.number(
        *("encoder_hid_dim", "caption_channels", "cross_attention_dim", "joint_attention_dim", "text_embed_dim"),
        *("embedding_dim", "d_model", "hidden_size"),
    )
    if width is not None:
        yield from (Form("signal", (facts.number("num_embeddings") or CONTEXT, width)), Form("signal", (width,)))


def _class(facts: Facts, model: nn.Module) -> Iterator[Form]:
    classes = facts.number("num_embeds_ada_norm", "num_class_embeds", "num_classes")
    if classes is not None:
        yield Form("tokens", (), classes)


def _pooled(facts: Facts, model: nn.Module) -> Iterator[Form]:
    width = facts.number("pooled_projection_dim", "projection_dim", "embedding_dim", "cross_attention_dim")
    yield from (Form("signal", (width,)),) if width else ()


def _image_places(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield Form("zeros", (16, 3))


def _text_places(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield Form("zeros", (CONTEXT, 3))


def _hint_image(facts: Facts, model: nn.Module) -> Iterator[Form]:
    """The image that a ControlNet is conditioned on; each layer between its first and last halves its sides."""
    side, channels = facts.number("sample_size") or 32, facts.number("conditioning_channels") or 3
    layers = next(facts.values("conditioning_embedding_out_channels"), (0, 0, 0, 0))
    larger = 2 ** (len(layers) - 1) if isinstance(layers, (list, tuple)) else 8
    yield from (Form("signal", (channels, larger * n, larger * n)) for n in dict.fromkeys((side, 32)))


# --- graphs and states -----------------------------------------------------------------------


def _edges(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield Form("edges")


def _adjacency(facts: Facts, model: nn.Module) -> Iterator[Form]:
    yield Form("adjacency")


def _state(facts: Facts, model: nn.Module) -> Iterator[Form]:
    """The state of a recurrent layer."""
    widths = [m.hidden_size for m in model.modules() if isinstance(m, RECURRENT) or hasattr(m, "weight_hh")]
    yield from (Form("signal", (int(w),)) for w in dict.fromkeys(w for w in widths if isinstance(w, int)))


RULES: tuple[tuple[str, Rule], ...] = (
    (r"decoder_input_ids|target_ids|tgt_ids|labels_ids", _decoded),
    (r"(.*_)?input_ids|tokens?|token_ids|(.*_)?text_ids?|ids", _tokens),
    (r"(.*_)?attention_mask|(.*_)?padding_mask|mask", _mask),
    (r"token_type_ids|segment_ids", _segments),
    (r"position_ids", _places),
    (r"pixel_values(_videos)?|images?|imgs?|videos?", _pixels),
    (r"input_features|(log_)?mels?|(mel_)?spec(trogram)?|fbanks?", _features),
    (r"input_values|audios?(_values)?|wave(form)?s?|wavs?|speech", _recording),
    (r"decoder_input_values", _spoken),
    (r"timesteps?|t|time_?steps?|noise_levels?|guidance", _level),
    (r"sample|hidden_states|latents?", _noisy),
    (r"encoder_hidden_states|contexts?|cond(itioning)?", _context),
    (r"class_labels?|class_ids?|y", _class),
    (r"pooled_projections|proj_embedding|text_embeds", _pooled),
    (r"img_ids", _image_places),
    (r"txt_ids", _text_places),
    (r"controlnet_cond", _hint_image),
    (r"edge_index|edges", _edges),
    (r"adj(acency)?(_matrix|_t)?", _adjacency),
    (r"h|hx|h_?0|hidden|state", _state),
)
"""Which rule gives an argument's forms: the first whose pattern matches the whole name."""
