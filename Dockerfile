# Strata as a container image: a daemon that does I/O and nothing else. docs/containers.md tells how to run it.
#
#   docker build -t strata .
#
# It needs BuildKit (Docker 23 and newer have it on, before that: DOCKER_BUILDKIT=1).
#   BASE   an image with Node.js 20.19 or newer on glibc, here and in what is built
#   APP    what has the built program at /app: the stage below, or an image of yours, such as one that was made
#          where no packages can be fetched; the stage is not run then
ARG BASE=node:20-bookworm-slim
ARG APP=build

FROM ${BASE} AS build
WORKDIR /src
COPY package.json package-lock.json .npmrc ./
RUN npm ci --no-audit --no-fund
COPY . .
RUN npm run --silent build
RUN npm prune --omit=dev --no-audit --no-fund
# `npm pack` knows what belongs to the package, and leaves the tests out.
RUN npm pack --silent
RUN mkdir -p /app/bin /app/images && \
    tar -xzf strata-storage-*.tgz -C /app --strip-components=1 && \
    mv node_modules /app/ && \
    ln -s ../dist/src/cli/strata.js /app/bin/strata && \
    ln -s ../dist/src/control/strata-storage-daemon.js /app/bin/strata-storage-daemon && \
    chmod +x /app/dist/src/cli/strata.js /app/dist/src/control/strata-storage-daemon.js

FROM ${APP} AS app

FROM ${BASE}
LABEL org.opencontainers.image.title="Strata" \
      org.opencontainers.image.description="Serves qcow2 chains over NBD and merges them live" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=app /app /app
# A new named volume takes its owner from here.
COPY --from=app --chown=1000:1000 /app/images /images
# Threads for I/O that the page cache cannot answer: they wait for the host's disk rather than compute.
ENV PATH=/app/bin:${PATH} \
    NODE_ENV=production \
    UV_THREADPOOL_SIZE=16
# Any number will do (docker run --user): the owner of the images. Control sockets stand in /tmp/strata-UID.
USER 1000:1000
WORKDIR /images
EXPOSE 10809
STOPSIGNAL SIGTERM
# Asks over the control socket: a daemon whose loop stands still is not healthy, though its port is open.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s --retries=3 CMD ["strata", "jobs"]
ENTRYPOINT ["strata"]
CMD ["--help"]
