import { mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { silentLogger } from "../base/logger.ts";
import { fileAuthorization, listAuthorization } from "./authorization.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "authz-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

it("goes by the first rule that fits, and otherwise by the policy, which is to deny", () => {
  expect(listAuthorization({})("anybody")).toBe(false);
  expect(listAuthorization({ policy: "allow" })("anybody")).toBe(true);
  const may = listAuthorization({
    rules: [
      { match: "CN=eve", policy: "deny" },
      { match: "CN=*", policy: "allow", format: "glob" },
      { match: "O=*", policy: "allow" },
    ],
  });
  expect(["CN=eve", "CN=bob", "xCN=bob", "O=some", "O=*"].map(may)).toEqual([
    false,
    true,
    false,
    false,
    true,
  ]);
});

it.each([
  ["*", "", true],
  ["a*c", "abbc", true],
  ["a*c", "abcd", false],
  ["?", "", false],
  ["?", "ä", true],
  ["a*b*c", "aXbXbXc", true],
  ["*.example.com", "a.example.com.evil", false],
  ["[a-z]", "b", false],
  [`${"a*".repeat(20)}b`, "a".repeat(200), false],
])("pattern %s and name %s: %s", (match, name, fits) => {
  const may = listAuthorization({ rules: [{ match, policy: "allow", format: "glob" }] });
  expect(may(name)).toBe(fits);
});

it("reads a list from a file, and anew when it has changed", () => {
  const filename = join(directory, "clients.json");
  const write = (text: string, time: number) => {
    writeFileSync(filename, text);
    utimesSync(filename, time, time);
  };
  write('{"policy": "deny", "rules": [{"match": "CN=a", "policy": "allow"}]}', 1000);
  const may = fileAuthorization({ filename }, silentLogger);
  const mayAtFirst = fileAuthorization({ filename, refresh: false }, silentLogger);
  expect([may("CN=a"), may("CN=b")]).toEqual([true, false]);
  write('{"policy": "deny", "rules": [{"match": "CN=b", "policy": "allow"}]}', 2000);
  expect([may("CN=a"), may("CN=b")]).toEqual([false, true]);
  expect([mayAtFirst("CN=a"), mayAtFirst("CN=b")]).toEqual([true, false]);
  write("{", 3000);
  expect([may("CN=a"), may("CN=b")]).toEqual([false, false]);
  write('{"policy": "allow"}', 4000);
  expect(may("CN=a")).toBe(true);
});

it("refuses a file that is not there or holds something else", () => {
  const filename = join(directory, "x");
  const read = () => fileAuthorization({ filename }, silentLogger);
  expect(read).toThrow(`Unable to read '${filename}': No such file or directory`);
  for (const text of ["", "[]", '{"policy": "maybe"}', '{"rules": [{"match": "x"}]}', '{"more": 1}']) {
    writeFileSync(filename, text);
    expect(read).toThrow(`'${filename}' holds no list of rules:`);
  }
});
