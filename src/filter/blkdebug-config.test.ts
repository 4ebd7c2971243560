import { describe, expect, it } from "vitest";
import { parseBlkdebugConfig } from "./blkdebug-config.ts";

describe("the configuration file of blkdebug", () => {
  it("is read as QEMU reads it", () => {
    const text = `
# fails the second update
[set-state]
event = "l2_update"
state = "1"
new_state = "2"

[inject-error "named"]
  event = "l2_update"
  state = "0x2"
  errno = "28"
  once = "on"
  immediately = "no"
  sector = "-1"
`;
    expect(parseBlkdebugConfig(text)).toEqual({
      "set-state": [{ event: "l2_update", state: 1, new_state: 2 }],
      "inject-error": [
        { event: "l2_update", state: 2, errno: 28, once: true, immediately: false, sector: -1 },
      ],
    });
  });

  it.each([
    ["[foo]", "line 1: There is no option group 'foo'"],
    ["[constructor]", "line 1: There is no option group 'constructor'"],
    ['[inject-error]\nevents = "x"', "line 2: Invalid parameter 'events'"],
    ['[inject-error]\n__proto__ = "x"', "line 2: Invalid parameter '__proto__'"],
    ['event = "x"', "line 1: no group defined"],
    ["[inject-error]\nerrno = 5", "line 2: parse error"],
    ['[inject-error]\nerrno = "x"', "line 2: Parameter 'errno' expects a number"],
    ['[inject-error]\nonce = "x"', "line 2: Parameter 'once' expects 'on' or 'off'"],
    ["[inject-error", "line 1: parse error"],
  ])("%j is refused", (text, message) => {
    expect(() => parseBlkdebugConfig(text)).toThrow(message);
  });
});
