// The kernel that guests run: Debian's cloud kernel as it is installed here, with its modules.

import { existsSync, readdirSync } from "node:fs";
import path from "node:path";

export interface GuestKernel {
  /** Such as "6.1.0-40-cloud-amd64". */
  readonly release: string;
  /** The compressed image that QEMU starts. */
  readonly image: string;
  /** Directory of its modules. */
  readonly modules: string;
}

/** The newest of the installed cloud kernels; undefined where there is none. */
export function findGuestKernel(): GuestKernel | undefined {
  if (!existsSync("/boot")) return undefined;
  const releases = readdirSync("/boot")
    .map((name) => /^vmlinuz-(.*-cloud-amd64)$/.exec(name)?.[1])
    .filter((release) => release !== undefined)
    .filter((release) => existsSync(`/lib/modules/${release}/modules.dep`));
  const order = new Intl.Collator("en", { numeric: true });
  const release = releases.sort(order.compare).at(-1);
  if (release === undefined) return undefined;
  return { release, image: `/boot/vmlinuz-${release}`, modules: `/lib/modules/${release}` };
}

/** Full name of a program of this host, root's directories included; undefined when it is not installed. */
export function findProgram(name: string): string | undefined {
  if (name.includes("/")) return existsSync(name) ? name : undefined;
  const directories = `${process.env["PATH"] ?? ""}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin`.split(":");
  const found = directories.find((directory) => directory !== "" && existsSync(path.join(directory, name)));
  return found === undefined ? undefined : path.join(found, name);
}

/**
 * Why no guest can run here, for `describe.skipIf`, and said aloud; undefined when one can. `programs` are
 * further ones that the tests need.
 */
export function whyNoGuest(...programs: readonly string[]): string | undefined {
  const why = whatIsMissing(programs);
  if (why !== undefined) console.error(`skipped: no virtual machine can run here: ${why}`);
  return why;
}

function whatIsMissing(programs: readonly string[]): string | undefined {
  if (findGuestKernel() === undefined) return "no Debian cloud kernel is installed (linux-image-cloud-amd64)";
  const missing = ["qemu-system-x86_64", "busybox", ...programs].filter((name) => !findProgram(name));
  return missing.length === 0 ? undefined : `not installed: ${missing.join(", ")}`;
}
