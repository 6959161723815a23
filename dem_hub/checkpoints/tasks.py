"""What a model is for: the class of transformers that loads it, and the Hub's name of its task.

transformers is asked: its mappings say which model classes each Auto class loads. Many model classes are in several
mappings, so the order of the table decides.
"""

from dataclasses import dataclass

from dem_hub.checkpoints.architecture import PLAIN


@dataclass(frozen=True)
class Task:
    """What a class of models is for.

    `loader` is the class whose `from_pretrained` loads it: an Auto class, or the model's own class. `name` is the
    Hub's name of the task, such as `text-generation`, or an empty text if the Hub has none.
    """

    loader: str
    name: str = ""


_TEXT_GENERATION = Task("AutoModelForCausalLM", "text-generation")

# The middle of the name of a mapping (`MODEL_FOR_CTC_MAPPING_NAMES`), the Auto class that uses the mapping, and the
# task of transformers' pipelines, or of its model cards. What a class can do beyond text counts first: a model that
# reads images is a causal language model too, and so is one that hears. BART is a masked language model too.
_MAPPINGS = (
    ("FOR_IMAGE_TEXT_TO_TEXT_", "AutoModelForImageTextToText", "image-text-to-text"),
    ("FOR_SPEECH_SEQ_2_SEQ_", "AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"),
    ("FOR_CTC_", "AutoModelForCTC", "automatic-speech-recognition"),
    ("FOR_MULTIMODAL_LM_", "AutoModelForMultimodalLM", "any-to-any"),
    ("FOR_SEQ_TO_SEQ_CAUSAL_LM_", "AutoModelForSeq2SeqLM", "text2text-generation"),
    ("FOR_MASKED_LM_", "AutoModelForMaskedLM", "fill-mask"),
    ("FOR_CAUSAL_LM_", _TEXT_GENERATION.loader, _TEXT_GENERATION.name),
    ("FOR_SEQUENCE_CLASSIFICATION_", "AutoModelForSequenceClassification", "text-classification"),
    ("FOR_TOKEN_CLASSIFICATION_", "AutoModelForTokenClassification", "token-classification"),
    ("FOR_DOCUMENT_QUESTION_ANSWERING_", "AutoModelForDocumentQuestionAnswering", "document-question-answering"),
    ("FOR_TABLE_QUESTION_ANSWERING_", "AutoModelForTableQuestionAnswering", "table-question-answering"),
    ("FOR_QUESTION_ANSWERING_", "AutoModelForQuestionAnswering", "question-answering"),
    ("FOR_IMAGE_CLASSIFICATION_", "AutoModelForImageClassification", "image-classification"),
    (
        "FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_",
        "AutoModelForZeroShotImageClassification",
        "zero-shot-image-classification",
    ),
    ("FOR_VIDEO_CLASSIFICATION_", "AutoModelForVideoClassification", "video-classification"),
    ("FOR_AUDIO_CLASSIFICATION_", "AutoModelForAudioClassification", "audio-classification"),
    ("FOR_OBJECT_DETECTION_", "AutoModelForObjectDetection", "object-detection"),
    ("FOR_ZERO_SHOT_OBJECT_DETECTION_", "AutoModelForZeroShotObjectDetection", "zero-shot-object-detection"),
    ("FOR_IMAGE_SEGMENTATION_", "AutoModelForImageSegmentation", "image-segmentation"),
    ("FOR_SEMANTIC_SEGMENTATION_", "AutoModelForSemanticSegmentation", "image-segmentation"),
    ("FOR_DEPTH_ESTIMATION_", "AutoModelForDepthEstimation", "depth-estimation"),
    ("FOR_MASK_GENERATION_", "AutoModelForMaskGeneration", "mask-generation"),
    ("FOR_TEXT_TO_WAVEFORM_", "AutoModelForTextToWaveform", "text-to-audio"),
    ("FOR_TEXT_TO_SPECTROGRAM_", "AutoModelForTextToSpectrogram", "text-to-audio"),
    ("FOR_IMAGE_", "AutoModel", "image-feature-extraction"),
    ("", "AutoModel", "feature-extraction"),
)


def task_of(class_name: str) -> Task | None:
    """Return what a class of models is for.

    Args:
        class_name (`str`): A name from `architectures` in a model's `config.json`.

    Returns:
        [`Task`] or `None`: `None` if transformers has no such model. It may have code of its own.

    Example:

    ```python
    >>> from dem_hub.checkpoints.tasks import task_of
    >>> task_of("T5ForConditionalGeneration")
    Task(loader='AutoModelForSeq2SeqLM', name='text2text-generation')
    >>> task_of("BertForPreTraining")
    Task(loader='BertForPreTraining', name='')

    ```
    """
    if class_name in PLAIN.values():
        return _TEXT_GENERATION  # known without importing transformers, which takes seconds
    import transformers
    from transformers.models.auto import modeling_auto

    for middle, loader, task in _MAPPINGS:
        mapping = getattr(modeling_auto, f"MODEL_{middle}MAPPING_NAMES", {})
        for names in mapping.values():
            if class_name in ([names] if isinstance(names, str) else names):
                return Task(loader, task)
    found = getattr(transformers, class_name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return Task(class_name)
    return None
