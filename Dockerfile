# docker build -t muxfer . && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/study" --shm-size=2g muxfer sweep lr-width
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conf conf
COPY sweeps sweeps
COPY proxy_models proxy_models
COPY muxfer muxfer
RUN python -m venv /opt/muxfer \
 && /opt/muxfer/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

FROM python:3.12-slim-bookworm
COPY --from=build /opt/muxfer /opt/muxfer
RUN useradd --create-home --uid 1000 muxfer && mkdir /study && chown muxfer /study
ENV PATH=/opt/muxfer/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
USER muxfer
WORKDIR /study
# The MLflow dashboard: docker run -p 5000:5000 ... ui --host 0.0.0.0 --port 5000
EXPOSE 5000
ENTRYPOINT ["muxfer"]
CMD ["--help"]
