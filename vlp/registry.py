"""The names that a configuration may use, and what they stand for: to add one is a line, and the import of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vlp.checkpoints.importers import (
    bert,
    brivl,
    clip,
    cogview,
    dalle,
    lxmert,
    oscar,
    uniter,
    vilbert,
    vilt,
    visualbert,
    vlbert,
    vlp,
    volta,
)
from vlp.checkpoints.key_map import KeyMap
from vlp.models.dual_encoder import DualEncoder
from vlp.models.encoder_decoder import EncoderDecoder
from vlp.models.picture_coder import PictureCoder
from vlp.models.single_stream import SingleStream
from vlp.models.token_decoder import TokenDecoder
from vlp.models.two_stream import TwoStream
from vlp.nn.backbones.patches import Patches
from vlp.nn.backbones.timm_grid import TimmGrid
from vlp.nn.backbones.timm_regions import TimmRegions
from vlp.nn.embedders.b2t2 import B2T2Embedder
from vlp.nn.embedders.oscar import OscarEmbedder
from vlp.nn.embedders.summed import SummedEmbedder
from vlp.nn.embedders.two_stream import TwoStreamEmbedder
from vlp.nn.embedders.uniter import UniterEmbedder
from vlp.nn.embedders.vilt import ViltEmbedder
from vlp.nn.embedders.visualbert import VisualBertEmbedder
from vlp.nn.embedders.vlbert import VLBertEmbedder
from vlp.nn.embedders.vlp import VlpEmbedder
from vlp.nn.pictures.discrete_vae import DiscreteVae
from vlp.nn.pictures.openai_dvae import OpenAIDvae
from vlp.nn.pictures.patch_codebook import PatchCodebook
from vlp.nn.pictures.vq_vae import VqVae
from vlp.nn.towers.bert_text import BertText
from vlp.nn.towers.open_clip import OpenClipImage, OpenClipText
from vlp.nn.towers.timm_image import TimmImage
from vlp.nn.towers.transformers_text import TransformersText
from vlp.nn.towers.wenlan_image import wenlan_image
from vlp.nn.towers.wenlan_text import WenlanText
from vlp.objectives.answering import Answering
from vlp.objectives.contrastive import Contrastive
from vlp.objectives.denoising import Denoising
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import MaskedRegionClass, MaskedRegionDistribution, MaskedRegionRegression
from vlp.objectives.masked_region_contrast import MaskedRegionContrast
from vlp.objectives.matching import Matching
from vlp.objectives.momentum_contrast import MomentumContrast
from vlp.objectives.next_token import NextToken
from vlp.objectives.region_generation import RegionGeneration
from vlp.objectives.region_matching import RegionMatching
from vlp.objectives.region_prediction import RegionPrediction
from vlp.objectives.reproduction import Reproduction
from vlp.objectives.segment_matching import SegmentMatching
from vlp.objectives.sigmoid_contrastive import SigmoidContrastive
from vlp.objectives.word_region import WordRegionAlignment
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.captioning import Captioning
from vlp.tasks.multiple_choice import MultipleChoice
from vlp.tasks.pair_ranking import PairRanking
from vlp.tasks.paired_images import PairedImages
from vlp.tasks.phrase_grounding import PhraseGrounding
from vlp.tasks.region_choice import RegionChoice

MODELS: dict[str, Any] = {
    "dual_encoder": DualEncoder,
    "encoder_decoder": EncoderDecoder,
    "picture_coder": PictureCoder,
    "single_stream": SingleStream,
    "token_decoder": TokenDecoder,
    "two_stream": TwoStream,
}
EMBEDDERS: dict[str, Callable[..., nn.Module]] = {
    "b2t2": B2T2Embedder,
    "oscar": OscarEmbedder,
    "summed": SummedEmbedder,
    "two_stream": TwoStreamEmbedder,
    "uniter": UniterEmbedder,
    "vilt": ViltEmbedder,
    "visualbert": VisualBertEmbedder,
    "vlbert": VLBertEmbedder,
    "vlp": VlpEmbedder,
}
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "patches": Patches,
    "timm_grid": TimmGrid,
    "timm_regions": TimmRegions,
}
OBJECTIVES: dict[str, Callable[..., nn.Module]] = {  # and tasks
    "answer_classification": AnswerClassification,
    "answering": Answering,
    "captioning": Captioning,
    "contrastive": Contrastive,
    "denoising": Denoising,
    "masked_language": MaskedLanguage,
    "masked_region_class": MaskedRegionClass,
    "masked_region_contrast": MaskedRegionContrast,
    "masked_region_distribution": MaskedRegionDistribution,
    "masked_region_regression": MaskedRegionRegression,
    "matching": Matching,
    "momentum_contrast": MomentumContrast,
    "multiple_choice": MultipleChoice,
    "next_token": NextToken,
    "pair_ranking": PairRanking,
    "paired_images": PairedImages,
    "phrase_grounding": PhraseGrounding,
    "region_choice": RegionChoice,
    "region_generation": RegionGeneration,
    "region_matching": RegionMatching,
    "region_prediction": RegionPrediction,
    "reproduction": Reproduction,
    "segment_matching": SegmentMatching,
    "sigmoid_contrastive": SigmoidContrastive,
    "word_region_alignment": WordRegionAlignment,
}
PICTURES: dict[str, Callable[..., nn.Module]] = {  # coders of pictures
    "discrete_vae": DiscreteVae,
    "openai_dvae": OpenAIDvae,
    "patch_codebook": PatchCodebook,
    "vq_vae": VqVae,
}
IMAGE_TOWERS: dict[str, Callable[..., nn.Module]] = {
    "open_clip_image": OpenClipImage,
    "timm_image": TimmImage,
    "wenlan_image": wenlan_image,
}
TEXT_TOWERS: dict[str, Callable[..., nn.Module]] = {
    "bert_text": BertText,
    "open_clip_text": OpenClipText,
    "transformers_text": TransformersText,
    "wenlan_text": WenlanText,
}
IMPORTERS: dict[str, KeyMap] = {
    **bert.LAYOUTS,
    **brivl.LAYOUTS,
    **clip.LAYOUTS,
    **cogview.LAYOUTS,
    **dalle.LAYOUTS,
    **lxmert.LAYOUTS,
    **oscar.LAYOUTS,
    **uniter.LAYOUTS,
    **vilbert.LAYOUTS,
    **vilt.LAYOUTS,
    **visualbert.LAYOUTS,
    **vlbert.LAYOUTS,
    **vlp.LAYOUTS,
    **volta.LAYOUTS,
}
