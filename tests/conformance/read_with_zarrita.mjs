// Read one array whole with zarrita.js: its voxels go to a file as C-ordered bytes, what zarrita
// says about it to standard output as JSON.
//
//   node read_with_zarrita.mjs STORE ARRAY_PATH VOXELS_FILE
//
// ARRAY_PATH is '' where the root is the array. Node resolves packages from the folder of the
// script, so it is copied beside node_modules before it is run.

import { writeFileSync } from "node:fs";

import { FileSystemStore } from "@zarrita/storage";
import * as zarr from "zarrita";

const [store, arrayPath, voxelsFile] = process.argv.slice(2);

const root = zarr.root(new FileSystemStore(store));
const node = await zarr.open.v3(root);
const array =
  arrayPath === "" ? node : await zarr.open.v3(root.resolve(arrayPath), { kind: "array" });
const { data, shape, stride } = await zarr.get(array);

const cOrder = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
if (stride.join() !== cOrder.join()) {
  throw new Error(`zarrita gave strides ${stride}, not the C order ${cOrder}`);
}
writeFileSync(voxelsFile, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
console.log(
  JSON.stringify({
    kind: node.kind,
    attributes: node.attrs,
    shape,
    dtype: array.dtype,
    chunks: array.chunks,
    dimension_names: array.dimensionNames ?? null,
  }),
);
