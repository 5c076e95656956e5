// Point clouds: drag to turn, wheel to zoom; a slow sway until first touched. Points are [x, y, z] in camera 0's frame (y down, z forward).
for (const figure of document.querySelectorAll(".cloud")) {
  const canvas = figure.querySelector("canvas"), pen = canvas.getContext("2d");
  const clouds = JSON.parse(figure.querySelector("script").textContent);
  const buttons = [...figure.querySelectorAll("button")];
  let cloud = clouds[clouds.length - 1], yaw = 0.35, pitch = 0.18, zoom = 1, touched = false, seen = false;

  // look at the middle of the points from a little behind the first camera, whatever the scale of the estimate
  const middle = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] || 0;
  for (const c of clouds) {
    c.centre = [0, 1, 2].map((axis) => middle(c.points.map((p) => p[axis])));
    c.range = 1.25 * Math.max(Math.hypot(...c.centre), 1e-3);
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
    if (canvas.width !== Math.round(w * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio); }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch), back = cloud.range / zoom;
    const spots = [];
    const place = ([x, y, z]) => {
      const dx = x - cloud.centre[0], dy = y - cloud.centre[1], dz = z - cloud.centre[2];
      const a = cy * dx - sy * dz, b = sy * dx + cy * dz, v = cp * dy + sp * b, d = -sp * dy + cp * b + back;
      return d > 0.05 * back ? [w / 2 + a / d * w * 0.62, h / 2 + v / d * w * 0.62, d] : null;
    };
    cloud.points.forEach((point, i) => { const spot = place(point); if (spot) spots.push([...spot, cloud.colours[i]]); });
    spots.sort((p, q) => q[2] - p[2]);
    for (const [x, y, d, c] of spots) {
      const size = Math.max(1.2, Math.min(9, w * 0.0125 * back / d));
      pen.fillStyle = `rgb(${c[0]},${c[1]},${c[2]})`;
      pen.fillRect(x - size / 2, y - size / 2, size, size);
    }
    for (const [track, colour] of [[cloud.commanded, "#e3a13f"], [cloud.estimated, cloud.colour]]) {
      if (!track) continue;
      pen.strokeStyle = colour; pen.lineWidth = 2.5; pen.beginPath();
      let open = false;
      for (const step of track) { const spot = place(step); if (!spot) { open = false; continue; } open ? pen.lineTo(spot[0], spot[1]) : pen.moveTo(spot[0], spot[1]); open = true; }
      pen.stroke();
    }
  }
  buttons.forEach((button, i) => button.addEventListener("click", () => {
    cloud = clouds[i];
    buttons.forEach((other, j) => other.setAttribute("aria-pressed", i === j));
    draw();
  }));
  canvas.addEventListener("pointerdown", (e) => { touched = true; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", (e) => {
    if (!e.buttons) return;
    yaw += e.movementX * 0.008; pitch = Math.max(-1.2, Math.min(1.2, pitch + e.movementY * 0.008)); draw();
  });
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); touched = true; zoom = Math.max(0.4, Math.min(4, zoom * Math.exp(-e.deltaY * 0.001))); draw(); }, { passive: false });
  new IntersectionObserver((entries) => { seen = entries.some((entry) => entry.isIntersecting); }).observe(canvas);
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  (function sway(time) {
    if (!touched && !still && seen) { yaw = 0.45 * Math.sin(time / 2600); draw(); }
    requestAnimationFrame(sway);
  })(0);
  window.addEventListener("resize", draw);
  draw();
}
