#!/usr/bin/env node
// What npm links as `strata`. Threads for I/O that the page cache cannot answer wait for the host's disk rather
// than compute, so there are more of them than Node makes by itself. CommonJS, because with an ES module Node has made
// its pool before the first line runs.
process.env.UV_THREADPOOL_SIZE ??= "16";
import("../dist/src/cli/strata.js");
