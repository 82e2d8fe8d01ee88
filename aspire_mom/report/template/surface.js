// Draws the surface of a volume by casting rays through it. Without WebGL 2 nothing
// happens, and the view stays hidden; the pictures below it need no script.
"use strict";
(() => {
  const view = document.getElementById("view");
  const canvas = view.querySelector("canvas");
  const gl = canvas.getContext("webgl2", { antialias: false });
  if (!gl) return;

  const vertexSource = `#version 300 es
    in vec2 corner;
    out vec2 place;
    void main() { place = corner; gl_Position = vec4(corner, 0.0, 1.0); }`;
  const fragmentSource = `#version 300 es
    precision highp float;
    precision highp sampler3D;
    in vec2 place;
    out vec4 color;
    uniform sampler3D volume;
    uniform mat3 axes;  // right, up and towards the eye, in the volume's frame
    uniform float level, radius, hand, voxel;

    float density(vec3 p) {
      return texture(volume, vec3(p.xy, hand * p.z) + 0.5).r;
    }
    void main() {
      vec3 start = axes * vec3(place * radius, 0.0), ray = -axes[2];
      vec3 a = (-0.5 - start) / ray, b = (0.5 - start) / ray;
      vec3 near3 = min(a, b), far3 = max(a, b);
      float near = max(near3.x, max(near3.y, near3.z));
      float far = min(far3.x, min(far3.y, far3.z));
      color = vec4(0.0);
      float step = 0.6 * voxel, t = near;
      for (; t < far; t += step) if (density(start + t * ray) > level) break;
      if (t >= far) return;
      float low = max(t - step, near), high = t;
      for (int i = 0; i < 6; i++) {
        t = 0.5 * (low + high);
        if (density(start + t * ray) > level) high = t; else low = t;
      }
      vec3 p = start + t * ray, h = vec3(voxel, 0.0, 0.0);
      vec3 slope = vec3(
        density(p + h.xyy) - density(p - h.xyy),
        density(p + h.yxy) - density(p - h.yxy),
        density(p + h.yyx) - density(p - h.yyx));
      vec3 normal = normalize(-slope * axes + 1e-9);
      float light = max(dot(normal, normalize(vec3(-0.5, 0.7, 0.8))), 0.0);
      float depth = clamp(0.5 - 0.5 * t / radius, 0.0, 1.0);
      float gloss = pow(max(normal.z, 0.0), 30.0);
      vec3 lit = vec3(0.55, 0.70, 0.85) * (0.42 + 0.66 * light) + 0.08 * gloss;
      color = vec4(lit * (0.7 + 0.3 * depth), 1.0);
    }`;

  function compile(type, source) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    return shader;
  }
  const program = gl.createProgram();
  gl.attachShader(program, compile(gl.VERTEX_SHADER, vertexSource));
  gl.attachShader(program, compile(gl.FRAGMENT_SHADER, fragmentSource));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return;
  gl.useProgram(program);

  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  const corners = new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]);
  gl.bufferData(gl.ARRAY_BUFFER, corners, gl.STATIC_DRAW);
  const corner = gl.getAttribLocation(program, "corner");
  gl.enableVertexAttribArray(corner);
  gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);

  const size = Number(view.dataset.size);
  const text = atob(document.getElementById("voxels").textContent.trim());
  const voxels = Uint8Array.from(text, (c) => c.charCodeAt(0));
  gl.bindTexture(gl.TEXTURE_3D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.texImage3D(gl.TEXTURE_3D, 0, gl.R8, size, size, size, 0, gl.RED,
    gl.UNSIGNED_BYTE, voxels);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R])
    gl.texParameteri(gl.TEXTURE_3D, side, gl.CLAMP_TO_EDGE);
  gl.texParameteri(gl.TEXTURE_3D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
  gl.texParameteri(gl.TEXTURE_3D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);

  const uniform = (name) => gl.getUniformLocation(program, name);
  const [turn, tilt, level, hand] =
    ["turn", "tilt", "level", "hand"].map((id) => document.getElementById(id));
  let waiting = false;

  function draw() {
    waiting = false;
    // At least two pixels for each of the page's, for smooth edges.
    const ratio = Math.min(Math.max(window.devicePixelRatio, 2), 3);
    canvas.width = canvas.height = Math.round(canvas.clientWidth * ratio);
    gl.viewport(0, 0, canvas.width, canvas.height);
    const [az, el] = [turn, tilt].map((input) => (input.value * Math.PI) / 180);
    const [c, s, ce, se] = [Math.cos(az), Math.sin(az), Math.cos(el), Math.sin(el)];
    gl.uniformMatrix3fv(uniform("axes"), false,
      [-s, c, 0, -se * c, -se * s, ce, ce * c, ce * s, se]);
    gl.uniform1f(uniform("level"), level.value / view.dataset.highest);
    gl.uniform1f(uniform("radius"), 1.08 * view.dataset.radius);
    gl.uniform1f(uniform("hand"), hand.checked ? -1 : 1);
    gl.uniform1f(uniform("voxel"), 1 / size);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    document.getElementById("level-now").textContent = Number(level.value).toFixed(1);
  }
  function redraw() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = event;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last || last.pointerId !== event.pointerId) return;
    const degrees = 200 / canvas.clientWidth;
    const az = turn.value - (event.clientX - last.clientX) * degrees;
    turn.value = ((((az + 180) % 360) + 360) % 360) - 180;
    tilt.value = Number(tilt.value) + (event.clientY - last.clientY) * degrees;
    last = event;
    redraw();
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, () => { last = null; });
  for (const input of [turn, tilt, level, hand]) input.addEventListener("input", redraw);
  new ResizeObserver(redraw).observe(canvas);
  view.hidden = false;
})();
