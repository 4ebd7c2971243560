import { expect, it } from "vitest";
import { type DaemonView, deviceOf, findNode, jobIdFor, type NodeView } from "./daemon-view.ts";

function node(name: string, drv: string, file: string): NodeView {
  return { "node-name": name, drv, file, ro: false, image: { filename: file, "virtual-size": 1 } };
}

const view: DaemonView = {
  nodes: [
    node("#block1", "file", "/images/b.qcow2"),
    node("node-B", "qcow2", "/images/b.qcow2"),
    node("node-D", "qcow2", "/images/d.qcow2"),
    node("other", "qcow2", "/elsewhere/d.qcow2"),
  ],
  devices: [{ name: "virtio0", id: "e0", "node-name": "node-D" }],
};

it("finds a node by device, node name, path and bare file name", () => {
  expect(findNode(view, "virtio0")["node-name"]).toBe("node-D");
  expect(findNode(view, "e0")["node-name"]).toBe("node-D");
  expect(findNode(view, "node-B")["node-name"]).toBe("node-B");
  expect(findNode(view, "/images/b.qcow2")["node-name"]).toBe("node-B");
  expect(findNode(view, "b.qcow2")["node-name"]).toBe("node-B");
  expect(findNode(view, "#block1").drv).toBe("file");
});

it("does not choose between two files of one name", () => {
  expect(() => findNode(view, "d.qcow2")).toThrow(
    "no device, node or file is called 'd.qcow2': there are devices virtio0, nodes node-B, node-D, other",
  );
});

it("takes the only device where nothing is named", () => {
  expect(findNode(view, undefined)["node-name"]).toBe("node-D");
  expect(() => findNode({ ...view, devices: [] }, undefined)).toThrow("which device?");
  expect(deviceOf(view, findNode(view, "node-D"))).toBe("virtio0");
  expect(deviceOf(view, findNode(view, "node-B"))).toBeUndefined();
});

it("makes job ids that every daemon takes", () => {
  expect(jobIdFor("stream", "#block12")).toBe("stream-block12");
});
