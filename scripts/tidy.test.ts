import { describe, expect, it } from "vitest";
import { checkoutRoot, findings, importsOf, type SourceFile, sourceFiles } from "./tidy.ts";

/** Findings about one file, which some test imports, in a tree where `others` exist. */
function judge(path: string, text: string, others: readonly string[] = []): string[] {
  const files: SourceFile[] = [{ path, text }];
  for (const other of others) files.push({ path: other, text: "" });
  const all = files.map((file) => `import "${"../".repeat(1)}${file.path}";`).join("\n");
  return findings([...files, { path: "guest-tests/all.test.ts", text: all }]);
}

describe("the tree", () => {
  it("is tidy", () => {
    expect(findings(sourceFiles(checkoutRoot()))).toEqual([]);
  });
});

describe("layers", () => {
  it("lets a file import its own folder and lower layers", () => {
    const text = `import { a } from "./b.ts";\nimport type { c } from "../base/c.ts";`;
    expect(judge("src/block/a.ts", text, ["src/block/b.ts", "src/base/c.ts"])).toEqual([]);
  });

  it("forbids a higher layer", () => {
    expect(judge("src/block/a.ts", `import { b } from "../job/b.ts";`, ["src/job/b.ts"])).toEqual([
      "src/block/a.ts: imports src/job/b.ts of a higher layer (layer 2 imports lower ones only)",
    ]);
  });

  it("forbids a peer", () => {
    const text = `import { b } from "../../protocol/b.ts";`;
    expect(judge("src/format/qcow2/a.ts", text, ["src/protocol/b.ts"])).toEqual([
      "src/format/qcow2/a.ts: imports src/protocol/b.ts of a peer (layer 3 imports lower ones only)",
    ]);
  });

  it("keeps the test helpers out of the program, and lets tests import anything", () => {
    const helper = ["src/job/testing/b.ts"];
    const text = `import { b } from "./testing/b.ts";`;
    expect(judge("src/job/a.ts", text, helper)).toEqual([
      "src/job/a.ts: imports the test helper src/job/testing/b.ts",
    ]);
    expect(judge("src/job/a.test.ts", text, helper)).toEqual([]);
    expect(judge("src/base/a.test.ts", `import "../job/testing/b.ts";`, helper)).toEqual([]);
  });

  it("notices an import of what is not there", () => {
    expect(judge("src/base/a.ts", `import "./gone.ts";`)).toEqual([
      "src/base/a.ts: imports src/base/gone.ts, which does not exist",
    ]);
  });

  it("finds imports of every form", () => {
    const lines = [
      `import "./a.ts";`,
      `import {\n  one,\n  other,\n} from "./b.ts";`,
      `export { b } from "../c.ts";`,
      // In two pieces, or this file would be said to import it.
      `const d = await imp${"ort"}("./d.ts");`,
      `import x from "fs";`,
    ];
    const targets = ["src/base/a.ts", "src/base/b.ts", "src/c.ts", "src/base/d.ts"];
    expect(importsOf({ path: "src/base/x.ts", text: lines.join("\n") })).toEqual(targets);
  });
});

describe("bans", () => {
  it.each([
    ["src/block/a.ts", `import koffi from "koffi";`, "koffi: system calls belong to src/sys"],
    ["src/block/a.ts", `import { open } from "node:fs/promises";`, "node:fs: host files are reached through"],
    ["src/job/a.ts", "const now = Date.now();", "the time of day: time comes in as a Clock"],
    ["nbd/a.ts", "setTimeout(end, 10);", "a timer: time comes in as a Clock"],
    ["src/job/a.ts", "const x = Math.random();", "chance: chance comes in as a Prng"],
    ["src/block/a.ts", `if (process.env["X"]) x();`, "process: settings come in as parameters"],
  ])("in %s: %s", (file, text, finding) => {
    const found = judge(file, text);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(`${file}:1: uses ${finding}`);
  });

  it("leaves comments, tests and the wrapping files alone", () => {
    expect(
      judge("src/job/a.ts", "// not Date.now()\n/** nor\n * Math.random()\n */\nlet a; // nor Date.now()"),
    ).toEqual([]);
    expect(judge("src/job/a.test.ts", "Math.random();")).toEqual([]);
    expect(judge("src/base/clock.ts", "Date.now();")).toEqual([]);
  });
});

describe("shape", () => {
  it("limits lines and files", () => {
    expect(judge("src/base/a.ts", `// ${"x".repeat(108)}`)).toEqual([
      "src/base/a.ts:1: 111 characters (at most 110)",
    ]);
    expect(judge("src/base/a.ts", `say("${"x".repeat(108)}");`)).toEqual([]);
    expect(judge("src/base/a.ts", `${"x".repeat(110)}\n`.repeat(500))).toEqual([]);
    expect(judge("src/base/a.ts", "x\n".repeat(501))).toEqual([
      "src/base/a.ts: 501 lines: more than 500, so more than one idea",
    ]);
  });

  it("wants names that say something", () => {
    expect(judge("src/base/string-utils.ts", "")).toEqual([
      "src/base/string-utils.ts: the name says nothing: name it after what is in it",
    ]);
    expect(judge("src/base/someName.ts", "")).toEqual(["src/base/someName.ts: file names are kebab-case"]);
  });

  it("notices a file that nobody imports", () => {
    expect(findings([{ path: "src/base/alone.ts", text: "" }])).toEqual([
      "src/base/alone.ts: nobody imports it",
    ]);
    expect(findings([{ path: "src/cli/program.ts", text: "#!/usr/bin/env node\n" }])).toEqual([]);
  });

  it("notices a path of one machine", () => {
    const folder = ["", "home", "somebody"].join("/");
    expect(judge("docs/a.md", `run it in ${folder}/strata`)).toEqual(["docs/a.md:1: a path of one machine"]);
    expect(judge("docs/a.md", "see src/work/home.ts")).toEqual([]);
  });
});
