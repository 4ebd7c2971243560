// The runner itself: what is typed at the guest arrives whole, and a guest that fails says why.

import { afterEach, describe, expect, it } from "vitest";
import { scratchDirectory } from "../harness/scratch.ts";
import { buildInitramfs, GUEST_READY } from "./initramfs.ts";
import { whyNoGuest } from "./kernel.ts";
import { Machine } from "./machine.ts";

const missing = whyNoGuest();

describe.skipIf(missing !== undefined)(`a machine under test${missing ? ` (${missing})` : ""}`, () => {
  let machine: Machine | undefined;

  afterEach(() => machine?.stop());

  it("runs commands and tells their status and output, whatever the kernel says in between", async () => {
    const initramfs = await buildInitramfs({ modules: ["nbd"] }, `${scratchDirectory()}/initramfs`);
    machine = await Machine.start({ initramfs });
    await machine.waitFor(GUEST_READY, 90_000);

    expect(await machine.run("exit_with() { return $1; }; exit_with 7")).toEqual({ status: 7, output: "" });
    expect(await machine.must("printf 'a\\nb \"$HOME\"\\n'")).toBe('a\nb "$HOME"');
    expect((await machine.run("if then")).status).not.toBe(0);
    const long = "x".repeat(9_000);
    expect(await machine.must(`echo ${long}`)).toBe(long);
    const noisy = "for i in 1 2 3 4 5; do echo '<1>the kernel speaks' > /dev/kmsg; echo line $i; done";
    expect(await machine.must(noisy)).toBe("line 1\nline 2\nline 3\nline 4\nline 5");
    expect(machine.console).toContain("the kernel speaks");
    expect(await machine.must("ls -d /sys/block/nbd0")).toBe("/sys/block/nbd0");
    expect(await machine.qmp("query-status")).toMatchObject({ status: "running" });
    // A command that waits for ever is given up, and the error shows what the guest said last.
    await expect(machine.run("echo still here; sleep 1000", 1_000)).rejects.toThrow(
      /did not finish[\s\S]*still here/,
    );
    await machine.kill();
    await expect(machine.waitFor(/never said/, 60_000)).rejects.toThrow(/QEMU ended/);
  });

  it("shows QEMU's own words when it refuses to start", async () => {
    await expect(Machine.start({ arguments: ["-no-such-option"] })).rejects.toThrow(
      /QEMU[\s\S]*no-such-option/,
    );
  });
});
