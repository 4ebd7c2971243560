import { expect, it } from "vitest";
import { completions, imagesIn, namesIn, type Vocabulary } from "./monitor-completion.ts";

const WORDS: Vocabulary = {
  commands: ["block_stream", "help", "info"],
  topics: ["block", "block-jobs"],
  images: ["virtio0", "node-D", "node-E"],
};

it.each([
  ["", ["block_stream ", "help ", "info "], ""],
  ["blo", ["block_stream "], "blo"],
  ["info blo", ["block ", "block-jobs "], "blo"],
  ["help i", ["info "], "i"],
  ["block_stream n", ["node-D ", "node-E "], "n"],
  ["block_stream virtio0 node-D", ["node-D "], "node-D"],
  ["info block v", ["virtio0 "], "v"],
  ["frob", [], "frob"],
])("completes '%s'", (line, offered, last) => {
  expect(completions(line, WORDS)).toEqual([offered, last]);
});

it("finds the words in what the monitor says", () => {
  expect(namesIn("block_stream device [base] -- merge\nquit -- stop\n")).toEqual(["block_stream", "quit"]);
  expect(namesIn("info block [device] -- those\ninfo block-jobs -- jobs\n")).toEqual(["block", "block-jobs"]);
  const blocks = "virtio0 (node-E): /images/E (qcow2)\n    Cache mode:       writeback\n";
  expect(imagesIn(blocks)).toEqual(["virtio0"]);
  expect(imagesIn("node-D: /images/D (qcow2, read-only)\n\n#block7: /images/D (file)\n")).toEqual(["node-D"]);
});
