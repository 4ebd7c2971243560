import { describe, expect, it } from "vitest";
import { formatNbdUri, parseNbdUri } from "./uri.ts";

describe("NBD URIs", () => {
  it.each([
    ["nbd://example.com", { address: { host: "example.com", port: 10809 }, exportName: "" }],
    ["nbd://example.com/", { address: { host: "example.com", port: 10809 }, exportName: "" }],
    ["nbd://example.com:1234/disk", { address: { host: "example.com", port: 1234 }, exportName: "disk" }],
    ["nbd://[::1]:1234/a%20b/c", { address: { host: "::1", port: 1234 }, exportName: "a b/c" }],
    ["nbd:///disk", { address: { host: "localhost", port: 10809 }, exportName: "disk" }],
    ["nbd+unix:///?socket=/tmp/sock", { address: { path: "/tmp/sock" }, exportName: "" }],
    ["nbd+unix:///disk?socket=/tmp/a%3Fb&x=1", { address: { path: "/tmp/a?b" }, exportName: "disk" }],
    ["nbd+unix:////abs?socket=s", { address: { path: "s" }, exportName: "/abs" }],
  ])("reads %s", (uri, target) => {
    expect(parseNbdUri(uri)).toEqual(target);
    expect(parseNbdUri(formatNbdUri(target))).toEqual(target);
  });

  it.each([
    ["example.com:10809", /no NBD URI/],
    ["nbd://host:99999/x", /port/],
    ["nbd://host:0/x", /port/],
    ["nbd://a b:x/", /host or port/],
    ["nbd+unix:///x", /socket=PATH/],
    ["nbd+unix://host/x?socket=/s", /socket=PATH/],
    ["nbd://h/%zz", /percent/],
    ["nbds://host/x", /TLS is not supported here/],
    ["nbds+unix:///x?socket=/s", /TLS is not supported here/],
    ["http://host/x", /not supported/],
  ])("refuses %s and says why", (uri, message) => {
    expect(() => parseNbdUri(uri)).toThrow(message);
  });
});
