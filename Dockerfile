# syntax=docker/dockerfile:1

# Builds on the builder's own platform for the one that is asked for: docker buildx build --platform linux/amd64,linux/arm64 .
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH
ARG VERSION=devel
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/rewindmq ./cmd/rewindmq \
    && mkdir /out/data

# No shell, no package manager, user 65532.
FROM gcr.io/distroless/static:nonroot
COPY --from=build /out/rewindmq /rewindmq
# The embedded log; a broker on MongoDB writes nothing to disk. Everything else may be mounted read-only.
COPY --from=build --chown=65532:65532 /out/data /data
VOLUME /data
ENV REWINDMQ_STORE__DATA=/data
EXPOSE 1883 8080
USER nonroot:nonroot
HEALTHCHECK --interval=10s --timeout=6s --start-period=45s --retries=3 CMD ["/rewindmq", "healthcheck"]
ENTRYPOINT ["/rewindmq"]
CMD ["serve"]
