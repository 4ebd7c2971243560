// Style as a test: what a reviewer would otherwise have to notice. `scripts/tidy.test.ts` runs it over the
// tree.
//
//   node dist/scripts/tidy.js            prints one finding per line; exit code 1 when there is one
//   node dist/scripts/tidy.js --fix      breaks comment lines that are too long first
//
//   1. Layers: a file imports its own folder and lower layers only; peers of a layer do not import each
//      other.
//   2. koffi in src/sys only; files, time, chance and `process` only where they are wrapped (see BANS).
//   3. No file that nobody imports, but for programs, tests and their configuration.
//   4. Lines up to 110 characters, files up to 500 lines, kebab-case names, none of them "utils".
//   5. No path of somebody's own machine.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { wrapComments } from "./wrap-comments.ts";

/** A file of the tree: its path from the root, with slashes, and its text. */
export interface SourceFile {
  readonly path: string;
  readonly text: string;
}

const LINE_LENGTH_MAX = 110;
const FILE_LINES_MAX = 500;

/** Folders by layer, lowest first; the longest prefix that fits is a file's folder. */
const LAYERS: readonly (readonly [folder: string, layer: number])[] = [
  ["src/base/", 0],
  ["nbd/", 1],
  ["src/sys/", 1],
  ["src/block/", 2],
  ["src/protocol/", 3],
  ["src/format/qcow2/", 3],
  ["src/format/raw/", 3],
  ["src/filter/", 3],
  ["src/job/", 4],
  ["src/export/", 5],
  ["src/control/", 6],
  ["src/dashboard/", 7],
  ["src/cli/", 7],
];

interface Ban {
  readonly what: string;
  readonly pattern: RegExp;
  /** Folders and files where it stands on purpose. */
  readonly allowed: readonly string[];
  readonly instead: string;
}

const BANS: readonly Ban[] = [
  {
    what: "koffi",
    pattern: /from "koffi"|require\("koffi"\)|import\("koffi"\)/,
    allowed: ["src/sys/"],
    instead: "system calls belong to src/sys",
  },
  {
    what: "node:fs",
    pattern: /from "(node:)?fs(\/promises)?"/,
    // A socket's descriptor is no host file.
    allowed: ["src/sys/", "src/control/", "src/cli/", "nbd/send.ts"],
    instead: "host files are reached through src/sys/host-file.ts",
  },
  {
    what: "the time of day",
    pattern: /\bDate\.now\(|\bnew Date\(\)|\bperformance\.now\(|\bprocess\.hrtime\b/,
    allowed: ["src/base/clock.ts", "src/control/", "src/cli/"],
    instead: "time comes in as a Clock",
  },
  {
    what: "a timer",
    pattern: /\b(setTimeout|setInterval)\(/,
    allowed: ["src/base/clock.ts", "src/control/daemon-program.ts", "src/cli/"],
    instead: "time comes in as a Clock",
  },
  {
    what: "chance",
    pattern: /\bMath\.random\(|\brandomBytes\(|\brandomInt\(/,
    allowed: ["src/cli/"],
    instead: "chance comes in as a Prng",
  },
  {
    what: "process",
    pattern: /\bprocess\.(?!nextTick\b)/,
    allowed: ["src/sys/", "src/control/", "src/cli/"],
    instead: "settings come in as parameters",
  },
];

/**
 * Judges a set of files; `paths` that begin elsewhere than in a layer (scripts, tests) are held to 3-5 only.
 */
export function findings(files: readonly SourceFile[]): string[] {
  const known = new Set(files.map((file) => file.path));
  const imported = new Set<string>();
  const found: string[] = [];
  for (const file of files) {
    const imports = importsOf(file);
    for (const target of imports) imported.add(target);
    found.push(...badShape(file), ...badImports(file, imports, known), ...bannedCalls(file));
  }
  for (const file of files) {
    if (!imported.has(file.path) && !isEntry(file)) found.push(`${file.path}: nobody imports it`);
  }
  return found.sort();
}

/** Files of the tree that this file imports, as paths from the root. */
export function importsOf(file: SourceFile): string[] {
  const targets: string[] = [];
  // A statement begins its line, so that one inside a string of a test is none.
  const statements = file.text.matchAll(/^(?:import\b[^;"]*|export\b[^;"]*\bfrom )"(\.[^"]+)"/gm);
  const calls = file.text.matchAll(/\bimport\("(\.[^"]+)"\)/g);
  for (const match of [...statements, ...calls]) {
    targets.push(path.posix.join(path.posix.dirname(file.path), match[1]!));
  }
  return targets;
}

function badImports(file: SourceFile, imports: readonly string[], known: ReadonlySet<string>): string[] {
  const own = layerOf(file.path);
  const found: string[] = [];
  for (const target of imports) {
    if (!known.has(target)) found.push(`${file.path}: imports ${target}, which does not exist`);
    if (isTest(target) && !isTest(file.path)) found.push(`${file.path}: imports the test helper ${target}`);
    const other = layerOf(target);
    if (own === undefined || isTest(file.path)) continue;
    if (other === undefined) {
      found.push(`${file.path}: imports ${target}, which is no part of the program`);
    } else if (own.folder !== other.folder && other.layer >= own.layer) {
      const how = other.layer === own.layer ? "a peer" : "a higher layer";
      found.push(`${file.path}: imports ${target} of ${how} (layer ${own.layer} imports lower ones only)`);
    }
  }
  return found;
}

function bannedCalls(file: SourceFile): string[] {
  if (layerOf(file.path) === undefined || isTest(file.path)) return [];
  const found: string[] = [];
  for (const [number, line] of codeLines(file)) {
    for (const ban of BANS) {
      if (!ban.pattern.test(line) || ban.allowed.some((prefix) => file.path.startsWith(prefix))) continue;
      found.push(`${file.path}:${number}: uses ${ban.what}: ${ban.instead}`);
    }
  }
  return found;
}

function badShape(file: SourceFile): string[] {
  const found: string[] = [];
  const lines = file.text.split("\n");
  const count = lines.at(-1) === "" ? lines.length - 1 : lines.length;
  if (count > FILE_LINES_MAX && file.path.endsWith(".ts")) {
    found.push(`${file.path}: ${count} lines: more than ${FILE_LINES_MAX}, so more than one idea`);
  }
  const base = path.posix.basename(file.path);
  if (/(^|[-.])(utils?|helpers?|misc|common)[-.]/.test(base)) {
    found.push(`${file.path}: the name says nothing: name it after what is in it`);
  }
  if (file.path.endsWith(".ts") && !/^[a-z0-9-]+(\.(test|bench|config))?\.ts$/.test(base)) {
    found.push(`${file.path}: file names are kebab-case`);
  }
  lines.forEach((line, index) => {
    // A golden text or a Markdown table may be wide.
    if (line.length > LINE_LENGTH_MAX && file.path.endsWith(".ts") && !LONG_STRING.test(line)) {
      found.push(`${file.path}:${index + 1}: ${line.length} characters (at most ${LINE_LENGTH_MAX})`);
    }
    if (MACHINE_PATH.test(line)) found.push(`${file.path}:${index + 1}: a path of one machine`);
  });
  return found;
}

/** A sentence for a person, or a line that a test expects, is not cut for the limit. */
const LONG_STRING = /(["'`]).{60,}\1/;

// Written in pieces, so that this file passes its own check.
const MACHINE_PATH = new RegExp(
  `(^|[\\s"'\`(=:])/(${["work", "home", "Users", "root"].join("|")})/[A-Za-z0-9._-]`,
);

/**
 * Lines with a number, without comments. A line inside a template literal counts as code; that is strict
 * enough.
 */
function codeLines(file: SourceFile): [number, string][] {
  const lines: [number, string][] = [];
  let inComment = false;
  file.text.split("\n").forEach((line, index) => {
    const trimmed = line.trim();
    if (trimmed.startsWith("/*")) inComment = true;
    if (!inComment && !trimmed.startsWith("//")) lines.push([index + 1, line.replace(/\s\/\/ .*$/, "")]);
    if (trimmed.endsWith("*/")) inComment = false;
  });
  return lines;
}

function layerOf(file: string): { folder: string; layer: number } | undefined {
  let best: { folder: string; layer: number } | undefined;
  for (const [folder, layer] of LAYERS) {
    if (file.startsWith(folder) && folder.length > (best?.folder.length ?? 0)) best = { folder, layer };
  }
  return best;
}

/** Tests and what only tests use. */
function isTest(file: string): boolean {
  return /\.(test|bench)\.ts$/.test(file) || /(^|\/)(testing|testdata|guest-tests)\//.test(file);
}

/** Files that are started or found by name instead of being imported. */
function isEntry(file: SourceFile): boolean {
  return (
    !file.path.endsWith(".ts") ||
    /\.(test|bench|config)\.ts$/.test(file.path) ||
    file.path.startsWith("scripts/") ||
    file.text.startsWith("#!")
  );
}

/** Everything in the checkout that git keeps or would keep. */
export function sourceFiles(root: string): SourceFile[] {
  const listed = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], {
    cwd: root,
    encoding: "utf8",
  });
  const files: SourceFile[] = [];
  for (const name of new Set(listed.split("\0"))) {
    if (!/\.(ts|md|json)$|^scripts\/[^.]+$|^\.ci\//.test(name) || name === "package-lock.json") continue;
    try {
      files.push({ path: name, text: readFileSync(path.join(root, name), "utf8") });
    } catch {
      // Deleted, and not yet told to git.
    }
  }
  return files;
}

/** The root of the checkout that this file stands in, compiled or not. */
export function checkoutRoot(): string {
  const here = path.dirname(fileURLToPath(import.meta.url));
  return path.resolve(here, here.includes(`${path.sep}dist${path.sep}`) ? "../.." : "..");
}

function breakLongComments(root: string): void {
  for (const file of sourceFiles(root)) {
    if (!file.path.endsWith(".ts")) continue;
    const wrapped = wrapComments(file.text);
    if (wrapped !== file.text) writeFileSync(path.join(root, file.path), wrapped);
  }
}

if (process.argv[1] !== undefined && fileURLToPath(import.meta.url) === path.resolve(process.argv[1])) {
  const root = checkoutRoot();
  if (process.argv.includes("--fix")) breakLongComments(root);
  const found = findings(sourceFiles(root));
  for (const finding of found) console.log(finding);
  process.exitCode = found.length === 0 ? 0 : 1;
}
