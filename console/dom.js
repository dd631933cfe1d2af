// Elements and lists. Whatever comes from outside becomes text, never markup.

/** An element with properties and children; a child that is no element becomes text. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export const get = (id) => document.getElementById(id);

/** Writes only what has changed, so that the screen, screen readers and the focus are left alone otherwise. */
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/**
 * Makes the children of a list those of `items`, in their order. An item keeps its element as long as it is in the
 * list, and so its focus.
 */
export function keyed(parent, items, key, create, update = () => {}) {
  const old = new Map([...parent.children].map((element) => [element.dataset.key, element]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let element = old.get(name);
    old.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    if (element === at) at = at.nextElementSibling;
    else parent.insertBefore(element, at);
    update(element, item);
  }
  for (const element of old.values()) element.remove();
}

/** Asks before something that cannot be undone. */
export function confirmed(title, explanation, action) {
  const dialog = get("confirm");
  text(get("confirm-title"), title);
  text(get("confirm-text"), explanation);
  text(get("confirm-yes"), action);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
