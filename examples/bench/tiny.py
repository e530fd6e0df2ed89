"""Networks of many kinds, made tiny: two layers, a few channels, random weights, the same every time.

`ARCHITECTURES` lists builders by name; a name is `library/what`. What a library that is not installed would make is
left out. Sizes are the smallest at which every part of an architecture is still there.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import graphs
import torch
from torch import nn

Builder = Callable[[], nn.Module]
ARCHITECTURES: dict[str, Builder] = {}


def import_torchvision() -> None:
    """Imports torchvision without its C++ operators, which a CPU wheel of another torch lacks."""
    if importlib.util.find_spec("torchvision") is None:
        return
    real: Any = torch.library.register_fake

    def register_fake(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return real(op, *args, **kwargs)

    torch.library.register_fake = register_fake
    try:
        importlib.import_module("torchvision")
    finally:
        torch.library.register_fake = real


# --- transformers ----------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "d_embed", "d_inner_hid"), 32),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head"), 2),
    **dict.fromkeys(("n_heads", "num_heads", "num_key_value_heads", "num_decoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "d_inner"), 64),
    **dict.fromkeys(("hidden_dim", "ffn_dim", "mlp_dim"), 64),
    "head_dim": 16,
    "d_kv": 16,
    "vocab_size": 120,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "image_size": 32,
    "patch_size": 8,
    "embedding_size": 32,
    "projection_dim": 16,
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Values for fields of a configuration that it has."""


def small(kind: str, **fields: Any) -> Any:
    """A configuration of transformers with the values of `SMALL` and the given ones, those inside it alike."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(kind)
    derived = {name for name in SMALL if isinstance(getattr(type(default), name, None), property)}
    known = {name: value for name, value in SMALL.items() if hasattr(default, name) and name not in derived}
    return AutoConfig.for_model(kind, **{**known, **fields})


def hf(kind: str, head: str = "AutoModel", **fields: Any) -> None:
    """Registers a model of transformers by its model type."""

    def build() -> nn.Module:
        import transformers

        auto = getattr(transformers, head)
        config = small(kind, **fields)
        return auto.from_config(config) if head.startswith("Auto") else auto(config)

    ARCHITECTURES[f"transformers/{kind}{'' if head == 'AutoModel' else ':' + head.removeprefix('AutoModelFor')}"] = (
        build
    )


TEXT = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    vocab_size=120,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
VISION = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
)
WAVES = dict(
    conv_dim=(16, 16),
    conv_kernel=(10, 8),
    conv_stride=(8, 8),
    num_feat_extract_layers=2,
    vocab_size=32,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
STAGES = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])


def _texts() -> None:
    for kind in ("bert", "roberta", "distilbert", "albert", "electra", "mpnet", "xlm-roberta", "camembert", "ernie"):
        hf(kind)
    for kind in ("deberta", "deberta-v2", "modernbert", "nystromformer", "roformer", "squeezebert", "megatron-bert"):
        hf(kind)
    hf("convbert", num_groups=1, conv_kernel_size=3, head_ratio=2)
    hf("fnet")
    hf("mobilebert", true_hidden_size=16, intra_bottleneck_size=16, embedding_size=16, key_query_shared_bottleneck=True)
    hf("bert", "AutoModelForSequenceClassification")
    hf("bert", "AutoModelForMaskedLM")
    ARCHITECTURES["transformers/xlnet"] = _xlnet
    for kind in ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "bloom"):
        hf(kind, "AutoModelForCausalLM")
    for kind in ("gptj", "stablelm", "olmo", "granite", "cohere", "smollm3", "codegen", "biogpt"):
        hf(
            kind,
            "AutoModelForCausalLM",
            **({"rotary_dim": 8, "num_attention_heads": 4} if kind in ("gptj", "codegen") else {}),
        )
    hf("falcon", "AutoModelForCausalLM", num_kv_heads=2)
    hf("phi3", "AutoModelForCausalLM")
    hf("gpt_neo", "AutoModelForCausalLM", attention_types=[[["global", "local"], 1]], num_layers=2)
    hf("mixtral", "AutoModelForCausalLM", num_local_experts=2)
    hf(
        "qwen2_moe",
        "AutoModelForCausalLM",
        num_experts=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts_per_tok=1,
    )
    hf("mamba", "AutoModelForCausalLM", state_size=4, time_step_rank=4, intermediate_size=64)
    hf("mamba2", "AutoModelForCausalLM", state_size=8, head_dim=16, num_heads=4, n_groups=1, chunk_size=8)
    hf("rwkv", "AutoModelForCausalLM", attention_hidden_size=32, context_length=64)
    hf("falcon_mamba", "AutoModelForCausalLM", state_size=4, time_step_rank=4)
    for kind in ("t5", "mt5", "longt5", "umt5"):
        hf(kind, "AutoModelForSeq2SeqLM")
    for kind in ("bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "led"):
        hf(kind, "AutoModelForSeq2SeqLM", **({"attention_window": 8} if kind == "led" else {}))
    hf("switch_transformers", num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)
    hf(
        "vits",
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        flow_size=16,
        spectrogram_bins=9,
        depth_separable_num_layers=1,
        wavenet_dilation_rate=1,
        prior_encoder_num_flows=1,
        posterior_encoder_num_wavenet_layers=1,
        prior_encoder_num_wavenet_layers=1,
        duration_predictor_filter_channels=16,
        duration_predictor_num_flows=1,
        num_speakers=1,
    )


def _xlnet() -> nn.Module:
    from transformers import XLNetConfig, XLNetModel

    return XLNetModel(XLNetConfig(vocab_size=120, d_model=32, n_layer=2, n_head=2, d_inner=64))


def _images() -> None:
    for kind in ("vit", "deit", "beit", "data2vec-vision", "dinov2", "vit_mae", "vit_msn", "siglip_vision_model"):
        hf(kind)
    hf("clip_vision_model")
    hf("yolos", num_detection_tokens=5, image_size=[32, 32])
    hf("vit", "AutoModelForImageClassification")
    hf("resnet", **STAGES)
    hf("regnet", **STAGES, groups_width=4)
    hf("convnext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    hf("convnextv2", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    for kind in ("swin", "swinv2"):
        hf(kind, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, patch_size=4, num_attention_heads=[2, 2])
    hf("mobilenet_v1", depth_multiplier=0.1, min_depth=4)
    hf("mobilenet_v2", depth_multiplier=0.1, min_depth=4, depth_divisible_by=4, image_size=64)
    hf("efficientnet", width_coefficient=0.15, depth_coefficient=0.3, image_size=64, hidden_dim=192)
    hf(
        "mobilevit",
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        image_size=64,
        patch_size=2,
    )
    hf("poolformer", hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_encoder_blocks=4)
    hf(
        "segformer",
        "AutoModelForSemanticSegmentation",
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        image_size=64,
    )
    hf("pvt", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2], image_size=64)
    hf(
        "levit",
        hidden_sizes=[16, 16, 16],
        depths=[1, 1, 1],
        num_attention_heads=[2, 2, 2],
        key_dim=[8, 8, 8],
        image_size=64,
        patch_size=16,
    )
    hf(
        "dpt",
        "AutoModelForDepthEstimation",
        backbone_out_indices=[0, 1],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
        reassemble_factors=[2, 1],
        readout_type="ignore",
        num_hidden_layers=2,
    )
    hf("videomae", num_frames=4)
    hf("timesformer", num_frames=2)
    hf("vivit", num_frames=4, tubelet_size=[2, 8, 8])
    backbone = lambda: small("resnet", **STAGES, out_features=["stage2"])  # noqa: E731
    for kind in ("detr", "conditional_detr", "table-transformer"):
        ARCHITECTURES[f"transformers/{kind}"] = functools.partial(_detector, kind, backbone)
    ARCHITECTURES["transformers/vision-encoder-decoder"] = _captioner
    hf(
        "swin2sr",
        embed_dim=12,
        depths=[1],
        num_heads=[2],
        num_attention_heads=[2],
        window_size=4,
        image_size=16,
        patch_size=1,
    )
    hf(
        "perceiver",
        num_latents=8,
        d_latents=32,
        d_model=32,
        num_blocks=1,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
    )


def _detector(kind: str, backbone: Callable[[], Any]) -> nn.Module:
    from transformers import AutoModelForObjectDetection

    config = small(
        kind,
        backbone_config=backbone(),
        num_queries=4,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
    )
    return AutoModelForObjectDetection.from_config(config)


def _captioner() -> nn.Module:
    from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(small("vit"), small("gpt2"))
    return VisionEncoderDecoderModel(config)


def _sounds() -> None:
    for kind in ("wav2vec2", "hubert", "wavlm", "unispeech", "data2vec-audio", "sew"):
        hf(kind, **WAVES, **({"squeeze_factor": 1} if kind == "sew" else {}))
    hf("wav2vec2", "AutoModelForCTC", **WAVES)
    hf("wav2vec2-bert", feature_projection_input_dim=16)
    hf("whisper", "AutoModelForSpeechSeq2Seq", num_mel_bins=16, max_source_positions=100, max_target_positions=32)
    hf("whisper", "AutoModelForAudioClassification", num_mel_bins=16, max_source_positions=100)
    hf(
        "speech_to_text",
        "AutoModelForSpeechSeq2Seq",
        input_feat_per_channel=16,
        conv_channels=16,
        num_conv_layers=1,
        conv_kernel_sizes=[5],
        max_target_positions=32,
    )
    hf("audio-spectrogram-transformer", max_length=64, num_mel_bins=32)
    hf(
        "encodec",
        num_filters=8,
        hidden_size=16,
        codebook_size=32,
        codebook_dim=16,
        upsampling_ratios=[8, 4],
        target_bandwidths=[4.0, 8.0],
    )
    hf(
        "dac",
        encoder_hidden_size=4,
        downsampling_ratios=[8, 4],
        decoder_hidden_size=16,
        n_codebooks=2,
        codebook_size=32,
        codebook_dim=4,
        upsampling_ratios=[4, 8],
        hidden_size=8,
    )
    hf(
        "moonshine",
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        encoder_num_key_value_heads=2,
        decoder_num_key_value_heads=2,
    )
    hf("speecht5", "SpeechT5ForSpeechToText", **{**WAVES, "vocab_size": 81})


def _several() -> None:
    hf("clip", text_config=TEXT, vision_config=VISION)
    hf("siglip", text_config=TEXT, vision_config=VISION)
    hf("clipseg", text_config=TEXT, vision_config=VISION)
    hf("altclip", text_config={**TEXT, "project_dim": 16}, vision_config=VISION)
    hf("blip", text_config={**TEXT, "encoder_hidden_size": 32}, vision_config=VISION)
    hf("git", vision_config=VISION)
    hf("vilt", modality_type_vocab_size=2)
    hf(
        "clap",
        text_config=TEXT,
        audio_config=dict(
            hidden_size=32,
            patch_embeds_hidden_size=16,
            depths=[1, 1],
            num_attention_heads=[2, 2],
            num_hidden_layers=2,
            spec_size=64,
            num_mel_bins=16,
            patch_size=4,
            window_size=4,
        ),
    )


# --- timm and torchvision --------------------------------------------------------------------


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


TIMM = (
    "test_byobnet",
    "test_convnext",
    "test_convnext2",
    "test_convnext3",
    "test_efficientnet",
    "test_efficientnet_ln",
    "test_efficientnet_evos",
    "test_efficientnet_gn",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
)


TORCHVISION: dict[str, dict[str, Any]] = {
    "MobileNetV2": dict(width_mult=0.1),
    "ShuffleNetV2": dict(stages_repeats=[1, 1, 1], stages_out_channels=[8, 16, 32, 32, 64]),
    "MNASNet": dict(alpha=0.1),
    "VisionTransformer": dict(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64),
}


def _torchvision(name: str, **fields: Any) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10, **fields)


def _vision_zoo() -> None:
    for name in TIMM:
        ARCHITECTURES[f"timm/{name}"] = functools.partial(_timm, name)
    for name, fields in TORCHVISION.items():
        ARCHITECTURES[f"torchvision/{name}"] = functools.partial(_torchvision, name, **fields)


# --- diffusers -------------------------------------------------------------------------------

ATTENDED = dict(
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=12,
    attention_head_dim=2,
    sample_size=8,
)
DIFFUSERS: dict[str, dict[str, Any]] = {
    "UNet2DModel": dict(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        attention_head_dim=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2DConditionModel": dict(
        **ATTENDED,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "UNet3DConditionModel": dict(
        **ATTENDED,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ),
    "ControlNetModel": dict(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    ),
    "UNet1DModel": dict(
        sample_size=64,
        block_out_channels=(8, 32),
        in_channels=2,
        out_channels=2,
        extra_in_channels=16,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        layers_per_block=1,
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
        mid_block_type="UNetMidBlock1D",
    ),
    "DiTTransformer2DModel": dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, norm_num_groups=4, sample_size=8
    ),
    "PixArtTransformer2DModel": dict(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        in_channels=4,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=12,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    ),
    "SD3Transformer2DModel": dict(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    ),
    "FluxTransformer2DModel": dict(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    ),
    "PriorTransformer": dict(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=16,
        num_embeddings=7,
        additional_embeddings=4,
    ),
    "AutoencoderKL": dict(block_out_channels=(8,), norm_num_groups=4, sample_size=16),
    "AutoencoderTiny": dict(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "VQModel": dict(block_out_channels=(8,), norm_num_groups=4, sample_size=16, num_vq_embeddings=16),
}


def _diffuser(name: str) -> nn.Module:
    import diffusers

    return getattr(diffusers, name)(**DIFFUSERS[name])


# --- torch.nn, graphs ------------------------------------------------------------------------


class Last(nn.Module):
    """A recurrent layer with a head on its last member."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.layer(x)[0]
        return self.head(states[:, -1] if self.layer.batch_first else states[-1])


class Named(nn.Module):
    """Two embeddings and what is made of both."""

    def __init__(self) -> None:
        super().__init__()
        self.user_table, self.item_table = nn.Embedding(50, 16), nn.Embedding(70, 16)
        self.mixed = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.mixed(torch.cat([self.user_table(user), self.item_table(item)], -1))


class Matrix(nn.Module):
    """A matrix that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(96, 40) / 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Denoiser(nn.Module):
    """An image and a noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.level, self.last = nn.Conv2d(3, 32, 3, 1, 1), nn.Linear(1, 32), nn.Conv2d(32, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        told = self.level(t.float().view(-1, 1) / 1000)[:, :, None, None]
        return self.last(torch.relu(self.first(x) + told))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


def _embedding_head() -> nn.Module:
    return nn.Sequential(nn.Embedding(80, 16), Last(nn.LSTM(16, 24, batch_first=True)))


NN: dict[str, Builder] = {
    "mlp": lambda: nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4)),
    "convnet": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ),
    "conv1d": lambda: nn.Sequential(
        nn.Conv1d(2, 16, 9, 4), nn.ReLU(), nn.Conv1d(16, 16, 9, 4), nn.AdaptiveAvgPool1d(1)
    ),
    "conv3d": lambda: nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.AdaptiveAvgPool3d(1)),
    "convtranspose": lambda: nn.Sequential(
        nn.ConvTranspose2d(16, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)
    ),
    "convtranspose1d": lambda: nn.Sequential(
        nn.ConvTranspose1d(16, 32, 4, 2), nn.ReLU(), nn.ConvTranspose1d(32, 8, 4, 2)
    ),
    "autoencoder": lambda: nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1)),
    "lstm": lambda: Last(nn.LSTM(12, 24, 2, batch_first=True)),
    "lstm-time-first": lambda: Last(nn.LSTM(12, 24)),
    "lstm-bidirectional": lambda: Last(nn.LSTM(12, 16, bidirectional=True, batch_first=True)),
    "lstm-projected": lambda: nn.LSTM(12, 24, proj_size=8, batch_first=True),
    "gru": lambda: Last(nn.GRU(12, 24, 2, batch_first=True)),
    "rnn": lambda: Last(nn.RNN(12, 48, batch_first=True)),
    "lstm-cell": lambda: nn.LSTMCell(12, 24),
    "gru-cell": lambda: nn.GRUCell(12, 24),
    "transformer": lambda: nn.Transformer(32, 2, 1, 1, 64, batch_first=True),
    "transformer-encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2),
    "transformer-decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 2, 64, batch_first=True), 2),
    "multihead-attention": lambda: nn.MultiheadAttention(32, 2, batch_first=True),
    "self-attention": Attention,
    "embedding-lstm": _embedding_head,
    "embedding-mean": lambda: nn.Sequential(nn.EmbeddingBag(80, 16), nn.Linear(16, 4)),
    "bilinear": lambda: nn.Bilinear(16, 12, 24),
    "two-embeddings": Named,
    "matrix": Matrix,
    "denoiser": Denoiser,
    "weight-norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(64, 48)),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 48, 3, groups=3),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Conv2d(48, 48, 3, groups=48),
        nn.Conv2d(48, 32, 1),
        nn.AdaptiveAvgPool2d(1),
    ),
    "groupnorm": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.GroupNorm(2, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
    ),
}


def fill() -> dict[str, Builder]:
    """All of them, in a fixed order."""
    if ARCHITECTURES:
        return ARCHITECTURES
    ARCHITECTURES.update({f"torch.nn/{name}": build for name, build in NN.items()})
    ARCHITECTURES.update({f"graph/{name}": build for name, build in graphs.GRAPHS.items()})
    if importlib.util.find_spec("transformers"):
        for part in (_texts, _images, _sounds, _several):
            part()
    _vision_zoo()
    if importlib.util.find_spec("diffusers"):
        ARCHITECTURES.update({f"diffusers/{name}": functools.partial(_diffuser, name) for name in DIFFUSERS})
    return ARCHITECTURES
