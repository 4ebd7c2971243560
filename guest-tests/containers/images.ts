// Images for the tests, made of what this machine has: none is pulled, no package is fetched.
//
//   base     node and its libraries                           given to the Dockerfile as BASE
//   app      the package as `npm pack` makes it, with what    given to it as APP, in place of its
//            it needs at run time, at /app                    build stage
//   daemon   what the Dockerfile makes of the two
//   clients  nbdinfo, nbdcopy, qemu-img, qemu-io, fio with their libraries, and busybox

import { execFileSync, spawn } from "node:child_process";
import { chmodSync, cpSync, mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { GenericContainer } from "testcontainers";
import type { Engine } from "./engine.ts";

export const CHECKOUT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");

/** Programs of the clients. */
export const CLIENT_PROGRAMS = ["nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio", "busybox"] as const;

export interface Images {
  readonly daemon: string;
  readonly clients: string;
  readonly names: readonly string[];
}

/** Makes all images; `name` keeps those of two runs apart. */
export async function buildImages(engine: Engine, name: string): Promise<Images> {
  const images = {
    base: `${name}-base:t`,
    app: `${name}-app:t`,
    daemon: `${name}:t`,
    clients: `${name}-clients:t`,
  };
  const directory = mkdtempSync(path.join(tmpdir(), "strata-images-"));
  try {
    stageApp(path.join(directory, "app"));
    mkdirSync(path.join(directory, "bare/tmp"), { recursive: true });
    chmodSync(path.join(directory, "bare/tmp"), 0o1777);
    const bare = path.join(directory, "bare");
    await importImage(engine, images.base, [...withLibraries(process.execPath, "env"), "-C", bare, "."]);
    await importImage(engine, images.app, ["-C", directory, "app"]);
    await importImage(engine, images.clients, [...withLibraries(...CLIENT_PROGRAMS), "-C", bare, "."]);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  await GenericContainer.fromDockerfile(CHECKOUT)
    .withBuildkit()
    .withBuildArgs({ BASE: images.base, APP: images.app })
    .build(images.daemon, { deleteOnExit: false });
  return { daemon: images.daemon, clients: images.clients, names: Object.values(images) };
}

/** The same as the build stage of the Dockerfile leaves at /app. */
function stageApp(app: string): void {
  const run = (program: string, ...args: string[]) =>
    execFileSync(program, args, { cwd: CHECKOUT, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  mkdirSync(path.join(app, "bin"), { recursive: true });
  mkdirSync(path.join(app, "images"));
  const packed = run("npm", "pack", "--silent", "--pack-destination", app).trim();
  run("tar", "-xzf", path.join(app, packed), "-C", app, "--strip-components=1");
  rmSync(path.join(app, packed));
  const packages = run("npm", "ls", "--omit=dev", "--all", "--parseable").trim().split("\n").slice(1);
  for (const each of packages)
    cpSync(each, path.join(app, path.relative(CHECKOUT, each)), { recursive: true });
  for (const [name, file] of [
    ["strata", "dist/src/cli/strata.js"],
    ["strata-storage-daemon", "dist/src/control/strata-storage-daemon.js"],
  ] as const) {
    symlinkSync(`../${file}`, path.join(app, "bin", name));
    chmodSync(path.join(app, file), 0o755);
  }
}

/** tar's words for programs of this machine and the libraries that they load. */
function withLibraries(...programs: readonly string[]): string[] {
  const files = new Set<string>();
  for (const program of programs) {
    const file = path.isAbsolute(program)
      ? program
      : execFileSync("which", [program], { encoding: "utf8" }).trim();
    files.add(file);
    for (const [library] of libraries(file).matchAll(/\/\S+\.so[\w.]*/g)) files.add(library);
  }
  return ["-C", "/", ...[...files].map((file) => file.slice(1))];
}

/** What ldd tells; nothing for a program without libraries. */
function libraries(file: string): string {
  try {
    return execFileSync("ldd", [realpathSync(file)], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
  } catch {
    return "";
  }
}

async function importImage(engine: Engine, name: string, tarWords: readonly string[]): Promise<void> {
  const [repo, tag] = name.split(":");
  const owner = ["--owner=0", "--group=0", "--numeric-owner"];
  // Programs go by their names, which may be links here.
  const tar = spawn("tar", ["-c", ...owner, ...dereferenced(tarWords)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<number | null>((resolve) => tar.once("close", resolve));
  const docker = engine.client.container.dockerode;
  const changes = `ENV PATH=${path.dirname(process.execPath)}:/usr/local/bin:/usr/bin:/bin`;
  const answer = await docker.importImage(tar.stdout, { repo, tag, changes });
  const problem = await new Promise<Error | null>((resolve) => docker.modem.followProgress(answer, resolve));
  if (problem !== null) throw problem;
  if ((await ended) !== 0) throw new Error(`tar could not pack the image ${name}`);
}

function dereferenced(words: readonly string[]): readonly string[] {
  return words[1] === "/" ? ["--dereference", ...words] : words;
}
