import { describe, expect, it } from "vitest";
import { parseChardevOption } from "./chardev/options.ts";
import { helpText, parseDaemonOptions } from "./daemon-options.ts";

describe("the command line", () => {
  it("keeps the order of what is to be done", () => {
    const args = ["--blockdev", "a", "--nbd-server=b", "--export", "c", "--blockdev", "d", "--object", "e"];
    expect(parseDaemonOptions(args).steps).toEqual([
      { option: "blockdev", argument: "a" },
      { option: "nbd-server", argument: "b" },
      { option: "export", argument: "c" },
      { option: "blockdev", argument: "d" },
      { option: "object", argument: "e" },
    ]);
  });

  it("takes options that are no steps from anywhere", () => {
    expect(parseDaemonOptions(["--pidfile", "p", "--daemonize", "-T", "x", "--trace", "y", "-v"])).toEqual({
      steps: [],
      pidfile: "p",
      backingRoots: [],
      socketMode: undefined,
      socketGroup: undefined,
      insecure: false,
      daemonize: true,
      show: undefined,
      verbose: true,
    });
  });

  it("takes beginnings of names, joined short options and --", () => {
    expect(parseDaemonOptions(["--blockd", "a"]).steps).toEqual([{ option: "blockdev", argument: "a" }]);
    expect(parseDaemonOptions(["-Tx", "-hV", "--"]).show).toBe("help");
    expect(parseDaemonOptions(["--version"]).show).toBe("version");
  });

  it.each([
    [["foo"], "foo: Unexpected argument"],
    [["--", "foo"], "foo: Unexpected argument"],
    [["-"], "-: Unexpected argument"],
    [["--nope"], "unrecognized option '--nope'"],
    [["--nope=1"], "unrecognized option '--nope'"],
    [["--ver"], "option '--ver' is ambiguous; possibilities: '--verbose' '--version'"],
    [["-Z"], "invalid option -- 'Z'"],
    [["--blockdev"], "option '--blockdev' requires an argument"],
    [["-T"], "option requires an argument -- 'T'"],
    [["--daemonize=yes"], "option '--daemonize' doesn't allow an argument"],
  ])("refuses %j", (args, message) => {
    expect(() => parseDaemonOptions(args)).toThrow(message);
  });

  it("has help for each option", () => {
    const help = helpText("p");
    for (const name of ["blockdev", "chardev", "daemonize", "export", "help", "monitor", "nbd-server"]) {
      expect(help).toContain(`--${name}`);
    }
    for (const name of ["object", "pidfile", "trace", "verbose", "version"])
      expect(help).toContain(`--${name}`);
  });
});

describe("--chardev", () => {
  it.each([
    [
      "socket,id=c,path=/a,,b,server=on,wait=off",
      {
        type: "socket",
        data: { addr: { type: "unix", data: { path: "/a,b", abstract: false } }, server: true, wait: false },
      },
    ],
    [
      "socket,id=c,path=/a,server,nowait",
      {
        type: "socket",
        data: { addr: { type: "unix", data: { path: "/a", abstract: false } }, server: true, wait: false },
      },
    ],
    [
      "socket,id=c,host=h,port=1,reconnect=5,nodelay",
      {
        type: "socket",
        data: { addr: { type: "inet", data: { host: "h", port: "1" } }, server: false, reconnect: 5 },
      },
    ],
    [
      "socket,id=c,fd=3",
      { type: "socket", data: { addr: { type: "fd", data: { str: "3" } }, server: false } },
    ],
    ["stdio,id=c,signal=off", { type: "stdio", data: {} }],
    ["file,id=c,path=/log,append=on", { type: "file", data: { out: "/log", append: true } }],
    ["backend=null,id=c", { type: "null", data: {} }],
  ])("reads %s", (text, backend) => {
    expect(parseChardevOption(text)).toEqual({ id: "c", backend });
  });

  it.each([
    ["socket", "chardev: no id specified"],
    ["foo,id=c", "'foo' is not a valid char driver name"],
    ["null,id=1c", "Parameter 'id' expects an identifier"],
    ["socket,id=c,path=x,bogus=1", "Invalid parameter 'bogus'"],
    ["socket,id=c,path=x,server=maybe", "Parameter 'server' expects 'on' or 'off'"],
    ["socket,id=c,path=x,host=localhost", "None or one of 'path', 'fd' or 'host' option required."],
    ["socket,id=c,host=localhost", "chardev: socket: no port given"],
    ["file,id=c", "chardev: file: no filename given"],
  ])("refuses %s", (text, message) => {
    expect(() => parseChardevOption(text)).toThrow(message);
  });
});
