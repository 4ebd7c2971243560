// A Debian boots from what Strata serves, over a unix socket and over TCP, through five images that it has
// written itself; what it writes it finds after a reboot, after a power-off, and in the images.

import { describe, expect, it } from "vitest";
import { checkClean, lettersOnDisk } from "./harness/chain.ts";
import { nbdServerArguments } from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { checkFileSystem } from "./vm/after-guest.ts";
import { bootDebian, bootedTimes, debianInitramfs, settle } from "./vm/debian-guest.ts";
import { checkLayers, layerFile, makeLayers, ROOT_DEVICE, serveRoot } from "./vm/layered-root.ts";
import { rootDisk } from "./vm/root-disk.ts";
import { tcpServer } from "./vm/tcp-server.ts";

const disk = await rootDisk();
if (disk.missing !== undefined) console.warn(`SKIPPED, no guest can boot: ${disk.missing}`);

describe.skipIf(disk.missing !== undefined)("a guest whose root disk is an export", () => {
  it("boots from the top of five images, writes, reboots and finds its data", async () => {
    const directory = scratchDirectory();
    const initramfs = await debianInitramfs(directory);
    await makeLayers({ directory, image: disk.image!, initramfs }, nbdServerArguments(directory));

    const daemon = await serveRoot(directory, "E", nbdServerArguments(directory));
    const machine = await bootDebian({ initramfs, root: daemon.uri(ROOT_DEVICE) });
    await checkLayers(machine);
    await machine.must("dd if=/dev/urandom of=/srv/new bs=1M count=8 && md5sum /srv/new >/srv/new.md5");
    await settle(machine);
    machine.type("busybox reboot -f\n");
    await bootedTimes(machine, 2);
    await machine.must("md5sum -c /srv/new.md5");
    await checkLayers(machine);
    await machine.must("echo 'written after the reboot' >/srv/last");
    await settle(machine);
    await machine.stop();
    await daemon.quit();
    expect(await lettersOnDisk(layerFile(directory, "E"))).toBe("A B C D E");
    for (const letter of "ABCDE") await checkClean(layerFile(directory, letter));
    await checkFileSystem(layerFile(directory, "E"));

    const tcp = await tcpServer();
    const again = await serveRoot(directory, "E", tcp.arguments);
    const second = await bootDebian({ initramfs, root: tcp.uri(ROOT_DEVICE) });
    await second.must("md5sum -c /srv/new.md5");
    expect(await second.must("cat /srv/last")).toBe("written after the reboot");
    await checkLayers(second);
    await settle(second);
    await second.stop();
    await again.quit();
    await checkFileSystem(layerFile(directory, "E"));
  });
});
