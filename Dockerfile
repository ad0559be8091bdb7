# atlasvi in a container, with all extras but `integration`.
#   docker build -t atlasvi .                                             torch for the CPU
#   docker build -t atlasvi --build-arg TORCH=cu126 .                     torch with CUDA 12.6; run it with --gpus all
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" atlasvi info atlas.h5ad
# --user: so that what it writes is yours. The installation is read-only for the user, who needs neither a name nor a
# home: compiled kernels are kept in /tmp, and compiled again in each container; -v "$HOME/.cache/atlasvi:/cache" -e
# NUMBA_CACHE_DIR=/cache keeps them.
FROM python:3.12-slim
ARG TORCH=cpu
COPY constraints.txt /src/
RUN pip install --no-cache-dir --constraint /src/constraints.txt torch --extra-index-url "https://download.pytorch.org/whl/${TORCH}"
COPY pyproject.toml README.md LICENSE /src/
COPY loaders /src/loaders
COPY kernels /src/kernels
COPY engine /src/engine
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[all]" && rm -rf /src
RUN useradd --no-create-home --home-dir /nonexistent atlasvi
USER atlasvi
WORKDIR /data
ENTRYPOINT ["atlasvi"]
CMD ["--help"]
