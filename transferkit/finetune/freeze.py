"""Which parameters are trained, which are frozen, at what learning rate: gradients, modes and parameter groups.

`requires_grad` alone does not freeze: running statistics drift and dropout is active while a layer is in training mode,
and every `model.train()` enables that. So each frozen module has a hook that sets evaluation mode whenever it is
called. All parameter groups are created before the first step, for all parameters trained in any phase, so that
schedulers, checkpoints and distributed wrappers never see a new group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from transferkit.core.errors import OptionError, list_problems
from transferkit.finetune.adapters import is_adapter
from transferkit.nn import Backbone
from transferkit.nn.clamps import clamp_sparingly
from transferkit.nn.norm import follows_batches
from transferkit.nn.norm.conv_folding import fold_convolutions
from transferkit.nn.overriding import Override
from transferkit.records import Claim
from transferkit.strategies import HEAD, Phase, Rule

__all__ = ["FreezePlan", "claims_table", "find_backbone"]


@dataclass(frozen=True)
class _Owned:
    """A parameter's name, size, stage and kinds, and whether weight decay applies to it."""

    name: str
    size: int
    stage: str
    kinds: frozenset[str]
    decayed: bool


class FreezePlan:
    """The phases of a strategy applied to a network.

    Args:
        network: Contains exactly one `Backbone`; all parameters outside its trunk are the "head".
        phases: In order; their rules must match every parameter, and each rule at least one.
        norm: "keep": statistics of batch normalisation in trained stages are updated; "frozen": all are fixed.
        weight_decay: For all parameters except norms, biases, and those that the trunk exempts.

    Raises:
        OptionError: If the rules do not fit the network; all problems are reported at once.

    Example:
        >>> from transferkit.records import BackboneSpec, Preprocessing
        >>> plain = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> spec = BackboneSpec(name="toy", source="module", architecture="toy", preprocessing=plain, pretrained=False)
        >>> toy = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU(),
        ...                     nn.Conv2d(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> network = nn.Sequential(Backbone(toy, spec), nn.Linear(16, 2))
        >>> rules = (Rule(stage="head", lr=1e-2), Rule(stage="top", lr=1e-3), Rule(stage="*"))
        >>> plan = FreezePlan(network, [Phase(name="last stage", rules=rules)])
        >>> plan.start(0)
        >>> [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        ['0.trunk.4.weight', '0.trunk.4.bias', '1.weight', '1.bias']
    """

    def __init__(
        self, network: nn.Module, phases: Sequence[Phase], *, norm: str = "keep", weight_decay: float = 0.0
    ) -> None:
        self.phases = tuple(phases)
        self.norm = norm
        self.weight_decay = weight_decay
        self.phase: int | None = None
        self._network = network
        self._backbone = find_backbone(network)
        self._owned = list(_own(network, self._backbone))
        self._asked = {name: parameter.requires_grad for name, parameter in self._parameters.items()}
        self._hooks: list[torch.utils.hooks.RemovableHandle | Override] = []
        self._claims = [self._claim(phase) for phase in self.phases]
        if problems := [problem for number in range(len(self.phases)) for problem in self._problems(number)]:
            raise OptionError(list_problems("The rules do not fit the network:", problems))
        trained = [name for name, is_trained in self.is_trained.items() if is_trained]
        self._idle = [[name for name in trained if claims[name].lr == 0] for claims in self._claims]

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, looked up each time, because sharding replaces them."""
        return dict(self._network.named_parameters())

    def _claim(self, phase: Phase) -> dict[str, Rule]:
        """Parameter name -> the first matching rule."""
        claimed: dict[str, Rule] = {}
        for owned in self._owned:
            rule = next((rule for rule in phase.rules if _fits(rule, owned)), None)
            if rule is not None:
                claimed[owned.name] = rule
        return claimed

    def _problems(self, number: int) -> Iterator[str]:
        """Yield a phase's parameters without a rule and rules without a parameter."""
        phase, claimed = self.phases[number], self._claims[number]
        where = f"phase {phase.name!r}: " if len(self.phases) > 1 else ""
        for owned in self._owned:
            if owned.name not in claimed:
                yield f"{where}parameter {owned.name!r} (stage {owned.stage!r}) has no rule"
        used = set(map(id, claimed.values()))
        for rule in phase.rules:
            if id(rule) not in used and self._is_unmatched(rule):
                yield f"{where}rule {str(rule)!r} claims no parameter"

    def _is_unmatched(self, rule: Rule) -> bool:
        """Whether a rule without parameters is an error: a stage with only a pooling layer has none."""
        known = [HEAD, *(stage.name for stage in self._backbone.stages)]
        matched = {stage for stage in known if fnmatchcase(stage, rule.stage)}
        return not matched or any(owned.stage in matched for owned in self._owned)

    @property
    def is_trained(self) -> dict[str, bool]:
        """Parameter name -> whether any phase trains it."""
        return {o.name: any(claims[o.name].lr > 0 for claims in self._claims) for o in self._owned}

    @property
    def trained_stages(self) -> dict[str, str]:
        """Parameter name -> its stage or "head", of those that any phase trains."""
        trained = self.is_trained
        return {owned.name: owned.stage for owned in self._owned if trained[owned.name]}

    @property
    def learning_stages(self) -> frozenset[str]:
        """Stages trained in any phase, including "head"."""
        return frozenset().union(*(self._learning(phase) for phase in range(len(self.phases))))

    def _learning(self, phase: int) -> frozenset[str]:
        return frozenset(owned.stage for owned in self._owned if self._claims[phase][owned.name].lr > 0)

    @property
    def updated_statistics(self) -> list[str]:
        """Paths inside the trunk of the running statistics that are updated in any phase."""
        if self.norm == "frozen":
            return []
        learning = self.learning_stages
        return [
            f"{path}.{name}" if path else name
            for path, module in self._backbone.trunk.named_modules()
            if follows_batches(module) and self._backbone.stage_of(path) in learning
            for name, _ in module.named_buffers(recurse=False)
        ]

    @property
    def cut(self) -> str | None:
        """The last stage before the first trained one; None if the first stage is trained."""
        names = [stage.name for stage in self._backbone.stages]
        first = next((position for position, name in enumerate(names) if name in self.learning_stages), len(names))
        return names[first - 1] if first > 0 else None

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: all parameters trained in any phase, in network order.

        Each has "lrs", its learning rate in every phase (0 if frozen), and a "name"; "lr" is the highest of them.
        """
        groups: dict[tuple[tuple[float, ...], bool], dict[str, Any]] = {}
        parameters = self._parameters
        for owned in self._owned:
            lrs = tuple(claims[owned.name].lr for claims in self._claims)
            if not any(lrs):
                continue
            group = groups.setdefault((lrs, owned.decayed), {"params": [], "stages": []})
            group["params"].append(parameters[owned.name])
            if owned.stage not in group["stages"]:
                group["stages"].append(owned.stage)
        return [
            {
                "params": group["params"],
                "lr": max(lrs),
                "lrs": lrs,
                "weight_decay": self.weight_decay if decayed else 0.0,
                "name": f"{'+'.join(group['stages'])}{'' if decayed else ' (no decay)'}",
            }
            for (lrs, decayed), group in groups.items()
        ]

    def start(self, phase: int, *, static: bool = False) -> None:
        """Start a phase; frozen modules switch to evaluation mode at their next call.

        Until `release`, convolutions also compute the normalisation of their outputs wherever its statistics are fixed,
        and clamping activations keep less: the same gradients, faster and in less memory.

        Args:
            phase: Its number.
            static: Compute gradients for all parameters trained in any phase, as distributed wrappers require;
                `drop_idle` discards those of parameters not trained in this phase.
        """
        self.release()
        self.phase = phase
        trained = self.is_trained
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(trained[name] if static else self._claims[phase][name].lr > 0)
        self._hooks = [module.register_forward_pre_hook(_stay_evaluating) for module in self._frozen_modules(phase)]
        self._hooks += fold_convolutions(self._backbone.trunk, self._backbone.foldable, harmless=[_stay_evaluating])
        self._hooks += clamp_sparingly(self._backbone.trunk)

    def set_modes(self, *, training: bool = False) -> None:
        """Set evaluation mode for the currently frozen modules.

        Args:
            training: Set training mode for the rest of the trunk, which may have been frozen in the previous phase,
                because trainers do not change modes. Else its modes are unchanged.
        """
        if self.phase is None:
            return
        frozen = set(self._frozen_modules(self.phase))
        for module in self._backbone.trunk.modules():
            if module in frozen or training:
                module.training = module not in frozen

    def drop_idle(self) -> None:
        """Discard gradients of parameters that the current phase does not train, so that an optimizer skips them,
        including weight decay and momentum."""
        assert self.phase is not None
        if idle := self._idle[self.phase]:
            parameters = self._parameters
            for name in idle:
                parameters[name].grad = None

    def release(self) -> None:
        """Remove the plan from the network: requires_grad is restored, and modes are no longer forced."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.phase = [], None
        for name, parameter in self._parameters.items():
            if name in self._asked:  # a finished module has another head
                parameter.requires_grad_(self._asked[name])

    def _frozen_modules(self, phase: int) -> list[nn.Module]:
        learning = self._learning(phase)
        return [
            module
            for path, module in self._backbone.trunk.named_modules()
            if self._last_stage(path) not in learning or (self.norm == "frozen" and _keeps_statistics(module))
        ]

    def _last_stage(self, path: str) -> str:
        """The stage in which a module ends: operations outside of submodules, such as dropout, usually come last."""
        prefix = f"{path}." if path else ""
        inside = [tap.stage for tap in self._backbone.taps if tap.path.startswith(prefix) and tap.path != path]
        if not path:
            return self._backbone.taps[-1].stage
        return inside[-1] if inside else self._backbone.stage_of(path)

    def claims(self) -> tuple[Claim, ...]:
        """The parameters that every rule matches, phase by phase, stem -> head."""
        order = [*(stage.name for stage in self._backbone.stages), HEAD]
        found = []
        for number, phase in enumerate(self.phases):
            of_phase = self._claims[number]
            for stage in order:
                for rule in phase.rules:
                    members = [o for o in self._owned if o.stage == stage and of_phase[o.name] is rule]
                    if members:
                        found.append(self._describe(number, rule, stage, members))
        return tuple(found)

    def _describe(self, phase: int, rule: Rule, stage: str, members: Sequence[_Owned]) -> Claim:
        return Claim(
            phase=self.phases[phase].name,
            rule=str(rule),
            stage=stage,
            tensors=len(members),
            parameters=sum(owned.size for owned in members),
            lr=rule.lr,
            decayed=sum(owned.size for owned in members if owned.decayed) if rule.lr > 0 else 0,
            statistics=self._statistics(phase, stage),
        )

    def _statistics(self, phase: int, stage: str) -> str:
        modules = self._backbone.trunk.named_modules()
        keepers = [m for path, m in modules if _keeps_statistics(m) and self._backbone.stage_of(path) == stage]
        if not keepers:
            return "none"
        learns = stage in self._learning(phase) and self.norm == "keep"
        return "updated" if learns and any(follows_batches(keeper) for keeper in keepers) else "fixed"


def find_backbone(network: nn.Module) -> Backbone:
    """The single backbone in a network.

    Raises:
        OptionError: If there is none, or more than one.
    """
    found = [module for module in network.modules() if isinstance(module, Backbone)]
    if len(found) != 1:
        raise OptionError(
            f"A freeze plan needs a network that contains one transferkit backbone, got {len(found)}. "
            "Build it on transferkit.load_backbone(...)."
        )
    return found[0]


def _own(network: nn.Module, backbone: Backbone) -> Iterator[_Owned]:
    """Yield every parameter of the network, once, with its stage and kinds."""
    inside = {id(parameter): name for name, parameter in backbone.trunk.named_parameters()}
    exempt = _exempt(backbone.trunk)
    kinds = dict(_kinds(network))
    for name, parameter in network.named_parameters():
        path = inside.get(id(parameter))
        stage = HEAD if path is None else backbone.stage_of(path.rpartition(".")[0])
        of_it = kinds[parameter]
        decayed = parameter.ndim > 1 and not of_it & {"norm", "bias"} and path not in exempt
        yield _Owned(name, parameter.numel(), stage, of_it, decayed)


def _exempt(trunk: nn.Module) -> frozenset[str]:
    """Parameters that the network's authors exempt from weight decay: position embeddings, class tokens."""
    ask = getattr(trunk, "no_weight_decay", None)
    return frozenset(ask()) if callable(ask) else frozenset()


def _kinds(network: nn.Module) -> Iterator[tuple[nn.Parameter, frozenset[str]]]:
    """Yield every parameter with the rule kinds that it has besides "any"."""
    for path, module in network.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            kinds = {
                "norm": is_norm and parameter.ndim <= 1,
                "bias": name.endswith("bias"),
                "adapter": is_adapter(f"{path}.{name}"),
            }
            yield parameter, frozenset(kind for kind, applies in kinds.items() if applies)


def _fits(rule: Rule, owned: _Owned) -> bool:
    return rule.kind in ("any", *owned.kinds) and fnmatchcase(owned.stage, rule.stage)


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and module.running_mean is not None


def _stay_evaluating(module: nn.Module, _inputs: object) -> None:
    module.training = False


def claims_table(claims: Sequence[Claim]) -> list[str]:
    """Lines of a table for display: which parameters are trained in each phase, at what learning rate.

    Example:
        >>> claim = Claim(phase="all", rule="*", stage="top", tensors=2, parameters=1200, lr=1e-3, decayed=0,
        ...               statistics="none")
        >>> print("\\n".join(claims_table([claim])))
        phase  stage  rule  parameters  learning rate
        all    top    *          1,200          0.001
    """
    rows = [("phase", "stage", "rule", "parameters", "learning rate")]
    for claim in claims:
        lr = f"{claim.lr:.3g}" if claim.lr > 0 else "frozen"
        rows.append((claim.phase, claim.stage, claim.rule, f"{claim.parameters:,}", lr))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if column < 3 else cell.rjust(width) for column, (cell, width) in enumerate(line))
        for line in (list(zip(row, wide, strict=True)) for row in rows)
    ]
