"""Tasks of model classes, against transformers' pipelines, its model cards, and its Auto classes."""

import pytest
import transformers

from dem_hub.checkpoints.tasks import _MAPPINGS, task_of


def test_every_class_of_transformers_is_loaded_by_its_loader() -> None:
    """The reference is the mapping of the Auto class itself."""
    from transformers.models.auto import modeling_auto

    loaded: dict[str, set[str]] = {}
    for name, auto_class in vars(modeling_auto).items():
        if name.startswith("AutoModel") and getattr(auto_class, "_model_mapping", None) is not None:
            for names in auto_class._model_mapping._model_mapping.values():
                for class_name in [names] if isinstance(names, str) else names:
                    loaded.setdefault(class_name, set()).add(name)
    assert len(loaded) > 1000
    for class_name, auto_classes in loaded.items():
        task = task_of(class_name)
        assert task is not None
        assert task.loader in auto_classes or (task.loader == class_name and not task.name)


@pytest.mark.parametrize(("loader", "task"), sorted({(loader, task) for _, loader, task in _MAPPINGS}))
def test_a_task_has_the_name_that_transformers_gives_it(loader: str, task: str) -> None:
    """Pipelines name the tasks; the two that have no pipeline any more are named by its model cards."""
    from transformers.modelcard import TASK_MAPPING
    from transformers.pipelines import SUPPORTED_TASKS

    if task in SUPPORTED_TASKS:
        assert loader in [auto_class.__name__ for auto_class in SUPPORTED_TASKS[task]["pt"]]
    else:
        names = getattr(transformers, loader)._model_mapping._model_mapping
        assert set(map(str, names.values())) == set(map(str, TASK_MAPPING[task].values()))
