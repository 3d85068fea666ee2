# An image that brings CUDA, Python 3.11 or newer and, best, PyTorch.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:25.12-py3
FROM ${BASE_IMAGE}

# The base's PyTorch is kept where it works with the pinned versions of the rest: /opt/bids_dl sees the base's packages
# and installs only what differs. Where the base has no PyTorch, the pinned one is installed. Where the base's is too old,
# or was built for another NumPy, the environment is closed to the base's packages and gets its own.
# PIP_CONSTRAINT is emptied because NVIDIA's images pin through it what bids_dl does not take from them.
WORKDIR /opt/bids_dl/src
COPY constraints.txt pyproject.toml ./
RUN python3 -m venv --system-site-packages --without-pip /opt/bids_dl \
 && python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["validation"], sep="\n")' > requirements.txt \
 && grep -v '^torch==' constraints.txt > pins.txt \
 && { python3 -c 'import torch; from importlib.metadata import version; print("torch==" + version("torch"))' 2> /dev/null \
      || grep '^torch==' constraints.txt; } >> pins.txt \
 && tail -n 1 pins.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    export PIP_CONSTRAINT= install="python3 -m pip --python /opt/bids_dl/bin/python install -r requirements.txt" \
 && { { $install -c pins.txt && /opt/bids_dl/bin/python -c 'import torch; torch.zeros(1).numpy()'; } \
      || { sed -i 's/= true/= false/' /opt/bids_dl/pyvenv.cfg && $install -c constraints.txt; }; }

# The program itself comes last, so that a change of it does not install everything again.
COPY LICENSE README.md ./
COPY bids_dl bids_dl
RUN PIP_CONSTRAINT= python3 -m pip --python /opt/bids_dl/bin/python install --no-cache-dir --no-deps . \
 && rm -r build *.egg-info \
 && /opt/bids_dl/bin/bids_dl --version

WORKDIR /tmp
ENV PATH=/opt/bids_dl/bin:$PATH \
    BIDS_DL_CONTAINER=bids-dl/bids_dl:0.1.0 \
    OMP_NUM_THREADS=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    USER=bids_dl
LABEL org.opencontainers.image.title="bids_dl" \
      org.opencontainers.image.description="Deep learning for neuroimaging, from a BIDS dataset to an evaluated, explained, reusable model" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.authors="The bids_dl developers" \
      org.label-schema.schema-version="1.0" \
      org.label-schema.name="bids_dl" \
      org.label-schema.description="Deep learning for neuroimaging, from a BIDS dataset to an evaluated, explained, reusable model" \
      org.label-schema.version="0.1.0" \
      org.label-schema.docker.cmd="docker run --rm --gpus all --user $(id -u):$(id -g) -v BIDS_DIR:/data:ro -v OUTPUT_DIR:/out bids-dl/bids_dl:0.1.0 /data /out participant"
ENTRYPOINT ["/opt/bids_dl/bin/bids_dl"]
