# atlasvi in a container, with all extras but `integration`.
#   docker build -t atlasvi .                                             torch for the CPU
#   docker build -t atlasvi --build-arg TORCH=cu126 .                     torch with CUDA 12.6; run it with --gpus all
#   docker run --rm -v "$PWD:/data" atlasvi info /data/atlas.h5ad
# The installation is read-only for the user, who has no home: compiled kernels are kept in /tmp.
FROM python:3.12-slim
ARG TORCH=cpu
COPY constraints.txt /src/
RUN pip install --no-cache-dir --constraint /src/constraints.txt torch --extra-index-url "https://download.pytorch.org/whl/${TORCH}"
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[all]" && rm -rf /src
RUN useradd --no-create-home --home-dir /nonexistent atlasvi
USER atlasvi
WORKDIR /data
ENTRYPOINT ["atlasvi"]
CMD ["--help"]
