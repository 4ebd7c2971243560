// A small Linux system in one file: busybox, programs of this host with their libraries, kernel modules, and
// an init that loads them, brings up the network, and gives a root shell on the serial console.
//
//   1. A program is put where the host has it, its libraries too, so that nothing needs to be relocated.
//   2. Modules are loaded in the order of modules.dep: what a module needs comes before it.
//   3. GUEST_READY on the console says that init is through and that the shell listens.
//   4. The shell reads line by line with nothing of a terminal's comfort, so that no line typed early is
//      lost. It is started anew should it end: a mistake in a command must not take the guest with it.

import { execFileSync } from "node:child_process";
import { readFileSync, realpathSync, writeFileSync } from "node:fs";
import path from "node:path";
import { CHARACTER_DEVICE, CpioWriter, DIRECTORY, PROGRAM, SYMLINK } from "./cpio.ts";
import { findGuestKernel, findProgram } from "./kernel.ts";

export interface InitramfsSettings {
  /** Programs of this host that are copied in with their shared libraries: "nbd-client", "mkfs.ext4". */
  readonly programs?: readonly string[];
  /** Kernel modules, each with its parameters if it has any ("nbd max_part=8"); a built-in one is skipped. */
  readonly modules?: readonly string[];
  /** Further files: path in the guest -> path on the host. */
  readonly files?: Readonly<Record<string, string>>;
  /** Shell text that is run when modules and network are up, before the root shell. */
  readonly init?: string;
}

/** What the console says when the root shell listens. */
export const GUEST_READY = /strata guest is ready/;

const ALWAYS_LOADED = ["virtio_pci", "virtio_net", "virtio_blk"];

/** Builds the archive as the file `into`, and gives that name back. @throws Error naming what is missing */
export async function buildInitramfs(settings: InitramfsSettings, into: string): Promise<string> {
  const archive = new CpioWriter();
  for (const name of ["proc", "sys", "dev", "tmp", "run", "mnt", "root", "etc"]) archive.add(name, DIRECTORY);
  archive.add("dev/console", CHARACTER_DEVICE, undefined, [5, 1]);
  for (const name of settings.programs ?? []) addProgram(archive, name);
  for (const [inGuest, onHost] of Object.entries(settings.files ?? {}))
    archive.add(inGuest, PROGRAM, readFileSync(onHost));
  const loading = addModules(archive, [...ALWAYS_LOADED, ...(settings.modules ?? [])]);
  addBusybox(archive);
  archive.add("init", PROGRAM, Buffer.from(initScript(loading, settings.init ?? "")));
  writeFileSync(into, archive.end());
  return into;
}

function initScript(loading: readonly string[], more: string): string {
  return `#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmp /tmp
ln -sf /proc/mounts /etc/mtab
${loading.join("\n")}
ip link set lo up
ip link set eth0 up 2>/dev/null && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2
${more}
stty -echo
echo "strata guest is ready"
while :; do sh -c 'while IFS= read -r line; do eval "$line"; done'; done
`;
}

/** Static busybox under the name of every tool that the host's own programs do not bring. */
function addBusybox(archive: CpioWriter): void {
  const busybox = needProgram("busybox");
  archive.add("bin/busybox", PROGRAM, readFileSync(busybox));
  const tools = execFileSync(busybox, ["--list"], { encoding: "utf8" }).trim().split("\n");
  for (const tool of tools) {
    const isThere = ["bin", "sbin", "usr/bin", "usr/sbin"].some((where) => archive.has(`${where}/${tool}`));
    if (!isThere) archive.add(`bin/${tool}`, SYMLINK, Buffer.from("/bin/busybox"));
  }
}

function addProgram(archive: CpioWriter, name: string): void {
  const program = needProgram(name);
  archive.add(program, PROGRAM, readFileSync(realpathSync(program)));
  for (const library of librariesOf(program))
    archive.add(library, PROGRAM, readFileSync(realpathSync(library)));
}

function needProgram(name: string): string {
  const program = findProgram(name);
  if (program === undefined) throw new Error(`${name} is not installed; scripts/install-tools installs it`);
  return program;
}

/**
 * What the dynamic loader would map, the loader itself included; nothing for a static program or a script.
 */
function librariesOf(program: string): string[] {
  let told: string;
  try {
    told = execFileSync("ldd", [program], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  } catch {
    return [];
  }
  const missing = /(\S+) => not found/.exec(told);
  if (missing !== null) throw new Error(`${program} needs ${missing[1]}, which is not installed`);
  return [...told.matchAll(/(\/\S+) \(0x/g)].map((match) => match[1]!);
}

/** Puts modules into the archive, and gives the shell lines that load them. */
function addModules(archive: CpioWriter, wanted: readonly string[]): string[] {
  const kernel = findGuestKernel();
  if (kernel === undefined) throw new Error("no linux-image-cloud-amd64; scripts/install-tools installs it");
  const needs = new Map<string, { file: string; needs: string[] }>();
  for (const line of readFileSync(path.join(kernel.modules, "modules.dep"), "utf8").split("\n")) {
    const [file, rest] = line.split(":");
    if (!file || rest === undefined) continue;
    needs.set(moduleName(file), { file, needs: rest.split(" ").filter(Boolean).map(moduleName) });
  }
  const builtIn = readFileSync(path.join(kernel.modules, "modules.builtin"), "utf8")
    .split("\n")
    .map(moduleName);
  const lines = new Map<string, string>();
  const load = (name: string, parameters: string) => {
    if (lines.has(name) || builtIn.includes(name)) return;
    const found = needs.get(name);
    if (found === undefined) throw new Error(`kernel ${kernel.release} has no module ${name}`);
    for (const other of found.needs) load(other, "");
    const inGuest = `lib/modules/${kernel.release}/${found.file}`;
    archive.add(inGuest, PROGRAM, readFileSync(path.join(kernel.modules, found.file)));
    lines.set(name, `insmod /${inGuest} ${parameters}`.trimEnd());
  };
  for (const entry of wanted) {
    const [name, ...parameters] = entry.split(" ");
    load(name!, parameters.join(" "));
  }
  return [...lines.values()];
}

/** "kernel/drivers/virtio/virtio-rng.ko.xz" is virtio_rng to the kernel. */
function moduleName(file: string): string {
  return path
    .basename(file)
    .replace(/\.ko(\.\w+)?$/, "")
    .replaceAll("-", "_");
}
