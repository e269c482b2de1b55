"""How pictures are brought to the square: geometries compared on held-back images, and views that are averaged."""

from transferkit.workflow.views.asked import AskedViews, apply_views, ask_views, fixed_views, refuse_for_tensors
from transferkit.workflow.views.choice import AUTO_SECONDS, Chosen, choose_views

__all__ = [
    "AUTO_SECONDS",
    "AskedViews",
    "Chosen",
    "apply_views",
    "ask_views",
    "choose_views",
    "fixed_views",
    "refuse_for_tensors",
]
