import { createCipheriv } from "node:crypto";
import { expect, it } from "vitest";
import { ObjectTable } from "./objects.ts";

it("takes a secret that has its data, and refuses one in the reference's words", () => {
  const objects = new ObjectTable();
  const add = (more: object) => objects.add({ "qom-type": "secret", id: "s", ...more } as never);
  expect(() => add({})).toThrow("Either 'file' or 'data' must be provided");
  expect(() => add({ data: "x", file: "y" })).toThrow("'file' and 'data' are mutually exclusive");
  expect(() => add({ file: "/nonexistent" })).toThrow(
    "Unable to read /nonexistent: Failed to open file “/nonexistent”: No such file or directory",
  );
  expect(() => add({ file: "/dev/zero" })).toThrow(
    "Unable to read /dev/zero: Failed to open file “/dev/zero”: more than 1048576 bytes",
  );
  add({ data: "x" });
  expect(() => add({ data: "x" })).toThrow("attempt to add duplicate property 's'");
});

it("decodes and decrypts secrets, and says what is wrong with them", () => {
  const objects = new ObjectTable();
  const key = Buffer.alloc(32, 7);
  const iv = Buffer.alloc(16, 9);
  const cipher = createCipheriv("aes-256-cbc", key, iv);
  const data = Buffer.concat([cipher.update("sesame"), cipher.final()]).toString("base64");
  const add = (id: string, more: object) => objects.add({ "qom-type": "secret", id, ...more } as never);
  add("key", { data: key.toString("base64"), format: "base64" });
  add("short", { data: "short" });
  const locked = { data, format: "base64", keyid: "key", iv: iv.toString("base64") };
  expect(() => add("s", { ...locked, keyid: "none" })).toThrow("No secret with id 'none'");
  expect(() => add("s", { ...locked, keyid: "short" })).toThrow("Key 'short' has 5 bytes; a key has 32");
  expect(() => add("s", { ...locked, iv: undefined })).toThrow("IV is required to decrypt secret");
  expect(() => add("s", { ...locked, iv: "AAAA" })).toThrow("IV should be 16 bytes in length not 3");
  expect(() => add("s", { data: "x", iv: "AAAA" })).toThrow("IV should not be set if keyid is not set");
  expect(() => add("s", { data: "%", format: "base64" })).toThrow("Unable to base64 decode the secret");
  expect(() => add("s", { ...locked, data: "AAAA" })).toThrow(
    "cannot be decrypted with key 'key' and this IV",
  );
  add("s", locked);
});
