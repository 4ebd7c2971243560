import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { EXIT_CODES } from "./exit-codes.ts";

it("stands in the README, code by code", () => {
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const section = readme.split("## Exit codes")[1]!.split("\n## ")[0]!;
  const told = [...section.matchAll(/^\| (\d+) \| ([A-Z_]+) \| (.*) \|$/gm)].map(([, code, name, text]) => [
    name,
    Number(code),
    text,
  ]);
  expect(told).toEqual(Object.entries(EXIT_CODES).map(([name, { code, text }]) => [name, code, text]));
});
