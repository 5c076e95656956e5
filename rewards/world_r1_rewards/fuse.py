"""Point clouds and meshes out of reconstructions: PLY and GLB without any package, fusion and cleaning with open3d."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from world_r1_rewards.probes._views import Views, resized

#: Constants of glTF: 34962 ARRAY_BUFFER, 34963 ELEMENT_ARRAY_BUFFER, 5126 FLOAT, 5121 UNSIGNED_BYTE, 5125 UNSIGNED_INT.
ARRAY, ELEMENTS, FLOAT, BYTE, UINT = 34962, 34963, 5126, 5121, 5125
POINTS, TRIANGLES = 0, 4


def write_ply(path: str | Path, points: np.ndarray, colours: np.ndarray, faces: np.ndarray | None = None) -> Path:
    """Binary PLY of points [N, 3] with colours [N, 3] uint8 and, if given, triangles [M, 3]. ValueError for other shapes or nan."""
    points, colours, faces = _checked(points, colours, faces)
    vertex = np.empty(len(points), [("p", "<f4", 3), ("c", "u1", 3)])
    vertex["p"], vertex["c"] = points, colours
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    head += [f"property float {axis}" for axis in "xyz"] + [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    body = vertex.tobytes()
    if faces is not None:
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        face = np.empty(len(faces), [("n", "u1"), ("i", "<i4", 3)])
        face["n"], face["i"] = 3, faces
        body += face.tobytes()
    path = Path(path)
    path.write_bytes("\n".join([*head, "end_header\n"]).encode() + body)
    return path


def write_glb(path: str | Path, points: np.ndarray, colours: np.ndarray, faces: np.ndarray | None = None) -> Path:
    """Binary glTF 2.0 of the same, for viewers in a browser. The axes are turned to glTF's (x right, y up, z backward)."""
    points, colours, faces = _checked(points, colours, faces)
    points = points * np.array([1, -1, -1], np.float32)
    rgba = np.concatenate([colours, np.full((len(colours), 1), 255, np.uint8)], 1)
    blobs: list[bytes] = []
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def add(data: np.ndarray, target: int, component: int, kind: str, **extra: Any) -> None:
        views.append({"buffer": 0, "byteOffset": sum(len(blob) for blob in blobs), "byteLength": data.nbytes, "target": target})
        accessors.append({"bufferView": len(views) - 1, "componentType": component, "count": len(data), "type": kind, **extra})
        blobs.append(data.tobytes() + b"\0" * (-data.nbytes % 4))

    add(points, ARRAY, FLOAT, "VEC3", min=points.min(0).tolist(), max=points.max(0).tolist())
    add(rgba, ARRAY, BYTE, "VEC4", normalized=True)
    primitive: dict[str, Any] = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": POINTS}
    if faces is not None:
        add(faces.astype(np.uint32).ravel(), ELEMENTS, UINT, "SCALAR")
        primitive |= {"indices": 2, "mode": TRIANGLES}
    gltf = {
        "asset": {"version": "2.0", "generator": "world-r1"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}], "accessors": accessors, "bufferViews": views,
        "buffers": [{"byteLength": sum(len(blob) for blob in blobs)}],
    }  # fmt: skip
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    binary = b"".join(blobs)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
    path = Path(path)
    path.write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks)
    return path


def _checked(points: np.ndarray, colours: np.ndarray, faces: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or colours.shape != points.shape or colours.dtype != np.uint8:
        raise ValueError(f"points must be [N, 3] and colours [N, 3] uint8, got {points.shape} and {colours.shape} {colours.dtype}")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    if faces is not None and (
        faces.ndim != 2 or faces.shape[1] != 3 or faces.min(initial=0) < 0 or faces.max(initial=0) >= len(points)
    ):
        raise ValueError(f"faces must be [M, 3] indices of the {len(points)} points")
    return points.astype(np.float32), colours, faces


def open3d() -> Any:
    """The package, imported late. ImportError that says what is missing: the package, or a system library of its."""
    try:
        import open3d as package
    except ImportError as error:
        raise ImportError(f"fusion needs open3d: pip install 'world-r1[open3d]' ({error})") from error
    except OSError as error:
        raise ImportError(
            f"open3d is installed, and a system library of its is not (on Debian: apt install libgl1 libgomp1): {error}"
        ) from error
    return package


def mesh(images: np.ndarray, views: Views, voxel: float = 0.02, far: float = 4.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangle mesh of all views, by truncated signed distances (Curless and Levoy, 1996): vertices, colours, faces.

    `images` [F, H, W, 3] uint8, the frames of `views`; `voxel` is its edge over the median depth, `far` where depth is cut off, in median
    depths. Vertices [N, 3] float32 in the unit of the views, colours [N, 3] uint8, faces [M, 3] int. ValueError if nothing is known.
    """
    o3d = open3d()
    core = o3d.core
    known = views.depth[views.depth > 0]
    if not len(known):
        raise ValueError("fusion: the views know no depth")
    unit = float(np.median(known))
    grid = o3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"), attr_dtypes=(core.float32,) * 3, attr_channels=((1), (1), (3)),
        voxel_size=voxel * unit, block_resolution=8, block_count=20_000, device=core.Device("CPU:0"),
    )  # fmt: skip
    image_of = lambda x: o3d.t.geometry.Image(core.Tensor(np.ascontiguousarray(x, np.float32)))  # noqa: E731
    for image, depth, K, c2w in zip(resized(images, views.size), views.depth, views.K, views.c2w, strict=True):
        lens = K.astype(np.float64)
        lens[:2, 2] -= 0.5  # open3d puts pixel centres at whole numbers
        camera, pose = core.Tensor(lens), core.Tensor(np.linalg.inv(c2w.astype(np.float64)))
        drawn, seen = image_of(depth), image_of(image / 255)
        blocks = grid.compute_unique_block_coordinates(drawn, camera, pose, 1.0, far * unit)
        grid.integrate(blocks, drawn, seen, camera, camera, pose, 1.0, far * unit)
    found = grid.extract_triangle_mesh(weight_threshold=1.0).to_legacy()
    colours = (np.asarray(found.vertex_colors) * 255).round().clip(0, 255).astype(np.uint8)
    return np.asarray(found.vertices, np.float32), colours, np.asarray(found.triangles)


def without_outliers(
    points: np.ndarray, colours: np.ndarray, neighbours: int = 20, ratio: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Points whose mean distance to their neighbours is within `ratio` standard deviations of everyone's."""
    o3d = open3d()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.astype(np.float64)))
    _, kept = cloud.remove_statistical_outlier(nb_neighbors=neighbours, std_ratio=ratio)
    index = np.asarray(kept, int)
    return points[index], colours[index]


def offscreen(
    points: np.ndarray, colours: np.ndarray, faces: np.ndarray | None, c2w: np.ndarray, K: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """[H, W, 3] uint8 view by open3d's renderer. RuntimeError where there is neither a display nor EGL: `render.splat` needs neither."""
    o3d = open3d()
    if faces is None:
        shape = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.astype(np.float64)))
        shape.colors = o3d.utility.Vector3dVector(colours / 255)
    else:
        vertices, triangles = o3d.utility.Vector3dVector(points.astype(np.float64)), o3d.utility.Vector3iVector(faces)
        shape = o3d.geometry.TriangleMesh(vertices, triangles)
        shape.vertex_colors = o3d.utility.Vector3dVector(colours / 255)
    try:
        renderer = o3d.visualization.rendering.OffscreenRenderer(size[1], size[0])
    except Exception as error:  # what it raises depends on the driver
        raise RuntimeError(
            f"open3d cannot draw here, which takes EGL (apt install libegl1 libgl1) or a display: {error}"
        ) from error
    material = o3d.visualization.rendering.MaterialRecord()
    material.shader = "defaultUnlit"
    renderer.scene.add_geometry("scene", shape, material)
    renderer.setup_camera(K.astype(np.float64), np.linalg.inv(c2w.astype(np.float64)), size[1], size[0])
    return np.asarray(renderer.render_to_image())
