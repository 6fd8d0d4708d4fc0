# CPU image. docker build -t vlmft . && docker run --rm --init -v "$PWD/outputs:/vlmft/outputs" vlmft
# Own data, and a model that is downloaded once: docker run --rm --init -v /my/images:/data:ro \
#   -v "$PWD/outputs:/vlmft/outputs" -v "$HOME/.cache:/root/.cache" vlmft model=smolvlm256m data=columns data.path=/data
# With a GPU: leave out --index-url below, and run with --gpus all.
FROM python:3.12-slim
WORKDIR /vlmft
RUN pip install --no-cache-dir 'torch>=2.11,<2.14' --index-url https://download.pytorch.org/whl/cpu
COPY . .
RUN pip install --no-cache-dir -e .
ENTRYPOINT ["python", "train.py"]
