#!/bin/sh
# Installs Fathom with one of its extras, at the versions of constraints.txt, into a folder of its own:
#
#   k8s/images/install.sh EXTRA TARGET [PYTHON]
#
# EXTRA is that of an image: controller, tracking or train (several with commas: train,pods,s3). The image files run this, and
# whoever makes a root folder for tests runs it, too: what is tested is what ships. Only finished packages (wheels) are
# taken, so no compiler is needed; Fathom itself is made from the folder that this script lies in. Where packages come
# from is pip's own configuration.
#
# To use it: PYTHONPATH=TARGET PATH=TARGET/bin:$PATH, with the Python that installed it.
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  sed -n 's/^#   //p' "$0" >&2
  exit 2
fi
extra=$1 target=$2 python=${3:-python3}
source=$(cd "$(dirname "$0")/../.." && pwd)

if [ -e "$target" ] && [ -n "$(ls -A "$target")" ]; then
  echo "$target is not empty: name a folder that is, or none" >&2
  exit 2
fi

PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip install --quiet --no-cache-dir --no-compile \
  --only-binary :all: --no-binary fathom-train --constraint "$source/constraints.txt" \
  --target "$target" "$source[$extra]"

# What no program here reads: other packages' tests, where nothing imports them; and of the package `kubernetes` the second
# client and the calls by name, 64 MB (ours go by path).
find "$target" -depth -type d \( -name tests -o -name __pycache__ \) \
  ! -path '*/numpy/*' ! -path '*/torch/*' ! -path '*/deepspeed/*' ! -path '*/ray/*' -exec rm -rf {} +
rm -rf "$target/kubernetes/aio" "$target/kubernetes/client/api"
# Scripts begin with the Python that made them; `env` finds the one of the place where they run.
find "$target/bin" -type f -exec sed -i '1s|^#!.*python.*$|#!/usr/bin/env python3|' {} +
