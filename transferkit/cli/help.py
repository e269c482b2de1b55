"""What `transferkit --help` and `transferkit VERB --help` print."""

from __future__ import annotations

__all__ = ["HELP", "USAGE"]

USAGE = """\
transferkit: a classifier for your images from a pretrained backbone. It measures before it decides.

  transferkit                                     adapt the packaged backbone to scikit-learn's digits, offline
  transferkit adapt data.root=DIR                 your own images: DIR/<class>/* or DIR/{train,val,test}/<class>/*
  transferkit analyze data.root=DIR               only measure and advise
  transferkit rank models='packaged/*' data.root=DIR   which backbone, before any training
  transferkit predict run=DIR images=PATH         classify images with a finished run
  transferkit evaluate run=DIR                    score a finished run on test images, if that was not done yet
  transferkit export run=DIR                      a finished run as ONNX
  transferkit zoo [pattern=resnet*]               which backbones there are
  transferkit cache [clear=true]                  what the feature bank holds

`transferkit VERB --help` says more.
"""

HELP = {
    "adapt": """\
transferkit adapt [key=value ...]: measure, decide, train, verify; leaves model, result and report in one folder.

  transferkit adapt                                                    scikit-learn's digits, offline
  transferkit adapt data.root=DIR image_size=96 out=runs/x
  transferkit adapt data.path=labels.csv                               columns path, label [, split, group]
  transferkit adapt model=timm/resnet50.a1_in1k data.root=DIR
  transferkit adapt model=torchvision/resnet18 checkpoint=my.pth data.root=DIR

  model=NAME            packaged/..., timm/..., torchvision/... (transferkit zoo lists them)
  checkpoint=FILE       your weights for that architecture, or the folder of a finished run of it
  data.root=DIR         a folder of images; data.path=FILE: a manifest; neither: the digits (data=digits)
  data.test=0.2         share of train held back for the test, where the data has no test split; as it is, only where
                        it has no splits at all
  data.strict=true      what would be set aside is an error; data.max_pixels=N: larger images are set aside
  data.columns.label=NAME   what a manifest calls the column; also .path, .split, .group; data.root=DIR: where its
                        paths start
  image_size=N          side in pixels; smaller is faster
  geometry=auto         or crop (the checkpoint's own), full, squash, pad, zoom, wide: how one view shows a picture
  views=auto            or 1, or crop+squash+zoom[+mirror]: features and predictions are means over these; a pass each
  strategy=auto         or linear_probe, few_layers (the last ones), many_layers, lp_ft (all, from a solved head),
                        surgical, norm_only, bias_only, lora; with stage=NAME for what the head reads (joined: all
                        stages; selected: their useful features)
  unfreeze=K                the last K stages learn (few_layers, many_layers, surgical); unfreeze=[blocks.5,top]: these
  train.epochs=N        and train.lr=, train.lr_scale=, train.optimizer=, train.augment=, ...: how to fine-tune
  trainer.precision=bf16-mixed, trainer.devices=2, trainer.strategy=ddp (or fsdp): options for Lightning's trainer
  resume=auto           the same command with the same out=DIR takes a killed run up; false starts afresh
  mode=evidence         or search: fine-tuning is tried on held-back images before it is chosen; or rule: the
                        textbook's matrix on the number of images and their similarity to the source
  norm=auto             or frozen, keep, or what to swap batch normalisation for (group, renorm, ...): fine-tuning
  budget=SECONDS        limit on fitting what strategy=auto chooses; with mode=search on all trials as well
  similarity=0..1       if you know better than what is measured; source=DIR: images like the backbone's own
  head=auto             or ridge, logistic, average (of the two)
  class_weight=none     or balanced, auto
  out=DIR               where the run goes; overwrite=true replaces a finished run of other settings there
  evaluate=auto         scores the test images once, at the end; false leaves that to transferkit evaluate
  cache=DIR, cache_limit=GB, device=auto, batch_size=N, seed=0, progress=false, debug=true

  transferkit adapt --multirun seed=0,1,2     one run per value, compared by held-back accuracy
  transferkit adapt --cfg job                 show the settings and stop
""",
    "analyze": """\
transferkit analyze [key=value ...]: one frozen pass over your images; prints how well each stage tells the classes
apart and what to do, and leaves evidence.json in the run's folder. Takes the same keys as adapt.

  transferkit analyze data.root=DIR image_size=96
""",
    "rank": """\
transferkit rank [key=value ...]: which backbone suits your images, from features only. One frozen pass each over
the training images; prints ranks with their intervals, costs and measures; leaves ranking.json and ranking.html.

  transferkit rank models='packaged/*' data.root=DIR image_size=96
  transferkit rank models=[packaged/tf_efficientnet_lite0,timm/resnet18.a1_in1k] data.root=DIR

  models=[NAME,...]     as for adapt's model; a name with * stands for what it matches and is on this machine
  image_size=N          for all of them; without it each runs at its checkpoint's own
  geometry=..., views=...   as for adapt; auto is one view here, each checkpoint's own crop
  data=..., data.root=DIR, data.path=FILE, pretrained, pooling, class_weight, cache=DIR, cache_limit=GB,
  device=auto, batch_size=N, seed=0, progress=false, out=DIR   as for adapt

What is computed stays in the feature bank: the same command again, or adapt with the winner, reads it there.
""",
    "evaluate": """\
transferkit evaluate run=DIR [key=value ...]: score a finished run on test images and add that to its report.

  transferkit evaluate run=sweep/3
  transferkit evaluate run=runs/x data.root=other_photos/

  run=DIR         the folder that adapt wrote
  data.root=DIR   other images than the run's own, with or without splits; data.path=FILE: a manifest
  split=test      or val
  device=auto, cache=DIR
""",
    "predict": """\
transferkit predict run=DIR images=PATH [key=value ...]: classify images with a finished run.

  transferkit predict run=runs/x images=photo.jpg
  transferkit predict run=runs/x images=folder/ out=answers.csv
  transferkit predict run=runs/x images='photos/**/*.jpg'

  run=DIR         the folder that adapt wrote
  images=PATH     an image, a folder of images, a pattern, or a list: images=[a.jpg,b.jpg]
                  what cannot be read is listed with the reason, and the others are answered
  out=FILE        .csv or .json; without it the answers are printed
  format=csv      or json, for printing
  max_pixels=N    larger images are not decoded
  device=auto
""",
    "export": """\
transferkit export run=DIR [key=value ...]: a finished run for other programs.

  transferkit export run=runs/x out=model.onnx

  run=DIR         the folder that adapt wrote
  out=FILE        default: DIR/model.onnx
  format=onnx     takes (N, 3, S, S) uint8 pixels, gives (N, K) probabilities; where predictions are averaged over
                  several geometries (N, G, 3, S, S): the metadata's "geometries" say which; mirror images and the
                  mean are made inside
""",
    "zoo": """\
transferkit zoo [key=value ...]: which backbones there are.

  transferkit zoo pattern='*efficientnet*' source=timm
  transferkit zoo offline=true                what can be loaded without any network

  pattern=GLOB    matched on the name
  source=NAME     packaged, timm, torchvision
  offline=true    only those whose weights are on this machine
""",
    "cache": """\
transferkit cache [key=value ...]: what is kept of earlier runs, and clearing it.

  transferkit cache
  transferkit cache clear=true                all of it
  transferkit cache clear=NAME                one shelf of the feature bank
  transferkit cache clear=audit               what the audit remembers of image files

  cache=DIR       another bank than the usual one
""",
}
