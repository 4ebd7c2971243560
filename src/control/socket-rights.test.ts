import { lstatSync, mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { bindPrivately, grantRights, parseRights } from "./socket-rights.ts";

let directory: string;
let socket: string;
let server: Server;
const mode = () => lstatSync(socket).mode & 0o777;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "rights-"));
  socket = join(directory, "socket");
  server = createServer();
});
afterEach(async () => {
  await new Promise((resolve) => server.close(resolve));
  rmSync(directory, { recursive: true, force: true });
});

it("a socket is its owner's alone from the moment that it is there, whatever the process gives to new files", () => {
  const before = process.umask(0);
  try {
    // Node binds within the call: there is no moment in between.
    bindPrivately(() => void server.listen({ path: socket }));
    expect(mode()).toBe(0o600);
    expect(process.umask()).toBe(0);
  } finally {
    process.umask(before);
  }
});

it("leaves the process as it was when binding fails", () => {
  const before = process.umask();
  const fail = () => {
    throw new Error("no");
  };
  expect(() => bindPrivately(fail)).toThrow("no");
  expect(process.umask()).toBe(before);
});

it("gives the rights and the group that were asked for", () => {
  bindPrivately(() => void server.listen({ path: socket }));
  const group = process.getgid!();
  grantRights(socket, parseRights("666", String(group)));
  expect(mode()).toBe(0o666);
  expect(lstatSync(socket).gid).toBe(group);
  expect(lstatSync(socket).uid).toBe(process.getuid!());
  expect(() => grantRights(join(directory, "x"), { mode: 0o660 })).toThrow("No such file or directory");
});

it("reads modes and groups", () => {
  expect(parseRights(undefined, undefined)).toEqual({ mode: 0o600, group: undefined });
  expect(parseRights("0660", undefined)).toEqual({ mode: 0o660, group: undefined });
  expect(parseRights(undefined, "root")).toEqual({ mode: 0o660, group: 0 });
  expect(parseRights("777", "12")).toEqual({ mode: 0o777, group: 12 });
  for (const wrong of ["", "66", "888", "4660", "060", "u+w"]) {
    expect(() => parseRights(wrong, undefined)).toThrow(`'${wrong}' is no mode for a socket`);
  }
  expect(() => parseRights(undefined, "no such group")).toThrow("there is no group 'no such group'");
});
