import { expect, it } from "vitest";
import { exposure, isLoopback } from "./exposure.ts";

it.each([
  ["127.0.0.1", true],
  ["127.9.9.9", true],
  ["::1", true],
  ["::ffff:127.0.0.1", true],
  ["localhost", true],
  ["0.0.0.0", false],
  ["::", false],
  ["10.0.0.1", false],
  ["::ffff:10.0.0.1", false],
  ["127.0.0.1.example.com", false],
  ["127.example.com", false],
  ["", false],
])("%s is for this machine alone: %s", (host, only) => {
  expect(isLoopback(host)).toBe(only);
  expect(exposure("nbd", host, 1) === undefined).toBe(only);
});
