//! The reader: checks a tree once, then walks it without copying.

use super::{BEGIN_NODE, END, END_NODE, HEADER_BYTES, LAST_COMPATIBLE_VERSION, MAGIC, NOP, PROP};
use arrayvec::ArrayVec;
use core::fmt;

/// Deepest nesting that is accepted, the root included.
const MAX_DEPTH: usize = 32;
/// Most nodes on a [`Path`], the root and the node itself included.
pub const MAX_PATH: usize = 10;

/// A node behind all nodes above it, from the root on.
pub type Path<'a> = ArrayVec<Node<'a>, MAX_PATH>;

/// Why bytes are not a device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdtError {
    /// Fewer bytes than the header needs or says.
    Truncated,
    /// The magic number is wrong.
    BadMagic,
    /// Not readable as version 16 or 17.
    BadVersion(u32),
    /// A block of the header reaches outside the tree.
    BadHeader,
    /// The structure block is malformed at this offset in bytes from its start.
    BadStructure(usize),
    /// Nested deeper than the reader accepts.
    TooDeep,
}

impl fmt::Display for FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated => f.write_str("device tree is cut short"),
            Self::BadMagic => f.write_str("no device tree: wrong magic number"),
            Self::BadVersion(v) => write!(f, "device tree format version {v} is not supported"),
            Self::BadHeader => f.write_str("device tree header points outside the tree"),
            Self::BadStructure(at) => write!(f, "device tree structure is malformed at {at:#x}"),
            Self::TooDeep => write!(f, "device tree is nested deeper than {MAX_DEPTH}"),
        }
    }
}

impl core::error::Error for FdtError {}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*word))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_be_bytes(*word))
}

/// The bytes from `at` up to the next NUL.
fn until_nul(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let tail = bytes.get(at..)?;
    let length = tail.iter().position(|&b| b == 0)?;
    tail.get(..length)
}

/// The NUL-terminated text at `at`.
fn text(bytes: &[u8], at: usize) -> Option<&str> {
    core::str::from_utf8(until_nul(bytes, at)?).ok()
}

/// Size in bytes of the tree whose header (40 bytes) `header` begins with.
///
/// # Errors
/// [`FdtError::Truncated`] or [`FdtError::BadMagic`].
pub fn total_size(header: &[u8]) -> Result<usize, FdtError> {
    if header.len() < HEADER_BYTES {
        return Err(FdtError::Truncated);
    }
    if be32(header, 0) != Some(MAGIC) {
        return Err(FdtError::BadMagic);
    }
    be32(header, 4).and_then(|n| usize::try_from(n).ok()).ok_or(FdtError::Truncated)
}

/// A checked device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fdt<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    reservations: &'a [u8],
}

/// What stands at one place of the structure block.
enum Token<'a> {
    /// With the name, which [`Fdt::check`] has found to be text: most nodes are passed over.
    Begin(&'a [u8]),
    EndNode,
    /// With the name as its offset in the strings block: most properties are passed over.
    Property {
        name: usize,
        value: &'a [u8],
    },
    Nop,
    End,
}

impl<'a> Fdt<'a> {
    /// Checks the tree at the start of `bytes`; bytes behind its total size are ignored.
    ///
    /// # Errors
    /// [`FdtError`] for the first fault.
    pub fn new(bytes: &'a [u8]) -> Result<Self, FdtError> {
        let bytes = bytes.get(..total_size(bytes)?).ok_or(FdtError::Truncated)?;
        if bytes.len() < HEADER_BYTES {
            return Err(FdtError::Truncated);
        }
        let field = |at: usize| be32(bytes, at).ok_or(FdtError::Truncated);
        let (version, last_compatible) = (field(20)?, field(24)?);
        if version < LAST_COMPATIBLE_VERSION {
            return Err(FdtError::BadVersion(version));
        }
        if last_compatible > LAST_COMPATIBLE_VERSION + 1 {
            return Err(FdtError::BadVersion(last_compatible));
        }
        let block = |start: u32, size: Option<u32>| {
            let start = usize::try_from(start).ok()?;
            let tail = bytes.get(start..)?;
            match size {
                Some(size) => tail.get(..usize::try_from(size).ok()?),
                None => Some(tail),
            }
        };
        // Version 16 has no size of the structure block; its end token ends it.
        let structure_size = if field(20)? >= 17 { Some(field(36)?) } else { None };
        let tree = Self {
            structure: block(field(8)?, structure_size).ok_or(FdtError::BadHeader)?,
            strings: block(field(12)?, Some(field(32)?)).ok_or(FdtError::BadHeader)?,
            reservations: block(field(16)?, None).ok_or(FdtError::BadHeader)?,
        };
        tree.check()?;
        Ok(tree)
    }

    /// Walks the whole structure block once: exactly one root, balanced, properties before child
    /// nodes, all names and values inside their blocks.
    fn check(&self) -> Result<(), FdtError> {
        let mut at = 0;
        let mut depth = 0;
        let mut root_seen = false;
        let mut properties_allowed = false;
        loop {
            let bad = FdtError::BadStructure(at);
            let (token, next) = self.token(at).ok_or(bad)?;
            match token {
                Token::Begin(name) => {
                    core::str::from_utf8(name).map_err(|_| bad)?;
                    // Only the root has no name, and there is one root.
                    if (depth == 0) != name.is_empty() || (depth == 0 && root_seen) {
                        return Err(bad);
                    }
                    root_seen = true;
                    properties_allowed = true;
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return Err(FdtError::TooDeep);
                    }
                }
                Token::EndNode if depth > 0 => {
                    depth -= 1;
                    properties_allowed = false;
                }
                Token::Property { name, .. } if properties_allowed => {
                    text(self.strings, name).ok_or(bad)?;
                }
                Token::Nop => {}
                Token::End if depth == 0 && root_seen => return Ok(()),
                _ => return Err(bad),
            }
            at = next;
        }
    }

    /// Reads the token at `at`; returns it with the offset of the next.
    fn token(&self, at: usize) -> Option<(Token<'a>, usize)> {
        let after = at.checked_add(4)?;
        match be32(self.structure, at)? {
            BEGIN_NODE => {
                let name = until_nul(self.structure, after)?;
                Some((Token::Begin(name), (after + name.len() + 1).next_multiple_of(4)))
            }
            END_NODE => Some((Token::EndNode, after)),
            PROP => {
                let length = usize::try_from(be32(self.structure, after)?).ok()?;
                let name = usize::try_from(be32(self.structure, after + 4)?).ok()?;
                let start = after + 8;
                let end = start.checked_add(length)?;
                let value = self.structure.get(start..end)?;
                Some((Token::Property { name, value }, end.next_multiple_of(4)))
            }
            NOP => Some((Token::Nop, after)),
            END => Some((Token::End, after)),
            _ => None,
        }
    }

    /// The root node.
    #[must_use]
    pub fn root(self) -> Node<'a> {
        let mut at = 0;
        // Only NOPs can stand before the root of a checked tree.
        while let Some((token, next)) = self.token(at) {
            at = next;
            if !matches!(token, Token::Nop) {
                break;
            }
        }
        Node { tree: self, name: "", body: at, parent_cells: Cells::DEFAULT }
    }

    /// All nodes in their order, the root first, each with those above it. Nodes that are nested
    /// deeper than a [`Path`] holds are left out.
    pub fn nodes(self) -> impl Iterator<Item = Path<'a>> + use<'a> {
        let mut path = Path::new();
        let mut too_deep = 0_usize;
        let mut at = 0;
        core::iter::from_fn(move || {
            loop {
                let (token, next) = self.token(at)?;
                at = next;
                match token {
                    Token::Begin(name) => {
                        let name = core::str::from_utf8(name).ok()?;
                        let parent_cells = path.last().map_or(Cells::DEFAULT, Node::cells);
                        let node = Node { tree: self, name, body: next, parent_cells };
                        if too_deep == 0 && path.try_push(node).is_ok() {
                            return Some(path.clone());
                        }
                        too_deep += 1;
                    }
                    Token::EndNode if too_deep > 0 => too_deep -= 1,
                    Token::EndNode => drop(path.pop()),
                    Token::Property { .. } | Token::Nop => {}
                    Token::End => return None,
                }
            }
        })
    }

    /// The node at `path` behind those above it, as [`find`](Self::find) looks for it.
    #[must_use]
    pub fn find_path(self, path: &str) -> Option<Path<'a>> {
        let mut found = Path::new();
        found.try_push(self.root()).ok()?;
        for name in path.strip_prefix('/')?.split('/').filter(|c| !c.is_empty()) {
            let child = found.last()?.child(name)?;
            found.try_push(child).ok()?;
        }
        Some(found)
    }

    /// The node at `path`, for example `/cpus/cpu@0`. A component without unit address matches the
    /// first node of that name with any.
    #[must_use]
    pub fn find(self, path: &str) -> Option<Node<'a>> {
        let components = path.strip_prefix('/')?.split('/').filter(|c| !c.is_empty());
        components.into_iter().try_fold(self.root(), |node, name| node.child(name))
    }

    /// Entries (address, size) of the memory reservation block, up to its terminator.
    pub fn reservations(self) -> impl Iterator<Item = (u64, u64)> + 'a {
        (0..self.reservations.len() / 16)
            .map_while(move |i| {
                Some((be64(self.reservations, 16 * i)?, be64(self.reservations, 16 * i + 8)?))
            })
            .take_while(|&entry| entry != (0, 0))
    }
}

/// `#address-cells` and `#size-cells` that apply to the children of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cells {
    address: u32,
    size: u32,
}

impl Cells {
    /// What the specification says when the properties are missing.
    const DEFAULT: Self = Self { address: 2, size: 1 };
}

/// A node of a checked tree.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    tree: Fdt<'a>,
    name: &'a str,
    /// Offset of what follows the node's name.
    body: usize,
    parent_cells: Cells,
}

/// Nodes are equal if they are the same node of the same tree.
impl PartialEq for Node<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.body == other.body && core::ptr::eq(self.tree.structure, other.tree.structure)
    }
}

impl Eq for Node<'_> {}

impl<'a> Node<'a> {
    /// Name with unit address; empty for the root.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Name without unit address.
    #[must_use]
    pub fn base_name(&self) -> &'a str {
        self.name.split_once('@').map_or(self.name, |(base, _)| base)
    }

    /// The node's properties.
    pub fn properties(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let strings = self.tree.strings;
        self.raw_properties()
            .filter_map(move |(name, value)| Some(Property { name: text(strings, name)?, value }))
    }

    /// The node's properties, names as offsets in the strings block.
    fn raw_properties(&self) -> impl Iterator<Item = (usize, &'a [u8])> + use<'a> {
        let tree = self.tree;
        let mut at = self.body;
        core::iter::from_fn(move || {
            loop {
                let (token, next) = tree.token(at)?;
                match token {
                    Token::Property { name, value } => {
                        at = next;
                        return Some((name, value));
                    }
                    Token::Nop => at = next,
                    _ => return None,
                }
            }
        })
    }

    /// The property `name`.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<Property<'a>> {
        let strings = self.tree.strings;
        let is_wanted = |&(at, _): &(usize, _)| {
            let rest = strings.get(at..).and_then(|tail| tail.strip_prefix(name.as_bytes()));
            rest.is_some_and(|rest| rest.starts_with(&[0]))
        };
        let (at, value) = self.raw_properties().find(is_wanted)?;
        Some(Property { name: text(strings, at)?, value })
    }

    /// The node's children.
    pub fn children(&self) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let tree = self.tree;
        let parent_cells = self.cells();
        let mut at = self.body;
        let mut depth = 0usize;
        core::iter::from_fn(move || {
            loop {
                let (token, next) = tree.token(at)?;
                at = next;
                match token {
                    Token::Begin(name) => {
                        depth += 1;
                        if depth == 1 {
                            let name = core::str::from_utf8(name).ok()?;
                            return Some(Node { tree, name, body: next, parent_cells });
                        }
                    }
                    Token::EndNode if depth == 0 => {
                        // Stay at the end of this node.
                        at = usize::MAX;
                        return None;
                    }
                    Token::EndNode => depth -= 1,
                    Token::Property { .. } | Token::Nop => {}
                    Token::End => return None,
                }
            }
        })
    }

    /// The child `name`; without unit address, the first of that name with any.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<Node<'a>> {
        let exact = name.contains('@');
        self.children().find(|c| if exact { c.name == name } else { c.base_name() == name })
    }

    fn cells(&self) -> Cells {
        let cell = |name, default| self.property(name).and_then(|p| p.u32()).unwrap_or(default);
        Cells {
            address: cell("#address-cells", Cells::DEFAULT.address),
            size: cell("#size-cells", Cells::DEFAULT.size),
        }
    }

    /// Entries (address, size) of `reg`, as far as both fit 64 bits; none when `reg` is missing or
    /// its length does not fit the parent's cell counts. Sizes are zero where `#size-cells` is.
    pub fn reg(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let Cells { address, size } = self.parent_cells;
        let value = self.property("reg").map_or(&[][..], |p| p.value);
        let entry = match (address, size) {
            (1 | 2, 0..=2) => 4 * (address as usize + size as usize),
            _ => usize::MAX,
        };
        let whole = if value.len().is_multiple_of(entry) { value } else { &[] };
        whole.chunks_exact(entry).map(move |e| {
            let (a, s) = e.split_at(4 * address as usize);
            (number(a), number(s))
        })
    }

    /// How addresses below this bus become those of the bus above it: `ranges`, or `None` if the bus
    /// says no way, or one that does not fit its cell counts or 64 bits.
    #[must_use]
    pub fn ranges(&self) -> Option<Ranges<'a>> {
        let value = self.property("ranges")?.value;
        let Cells { address, size } = self.cells();
        let parent = self.parent_cells.address;
        let cells = (address, parent, size);
        if value.is_empty() {
            return Some(Ranges { value, cells });
        }
        let entry = match cells {
            (1 | 2, 1 | 2, 1 | 2) => 4 * (address as usize + parent as usize + size as usize),
            _ => return None,
        };
        value.len().is_multiple_of(entry).then_some(Ranges { value, cells })
    }

    /// Whether `compatible` lists `wanted`.
    #[must_use]
    pub fn is_compatible(&self, wanted: &str) -> bool {
        self.property("compatible").is_some_and(|p| p.strings().any(|s| s == wanted))
    }

    /// Whether the normal world may use the node: `status` is missing, `okay` or `ok`.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.property("status").is_none_or(|p| matches!(p.str(), Some("okay" | "ok")))
    }
}

/// The `ranges` of a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges<'a> {
    value: &'a [u8],
    /// Cells of a child's address, of a parent's address and of a size: one or two each, if there
    /// are entries.
    cells: (u32, u32, u32),
}

impl Ranges<'_> {
    /// The address on the bus above of the `size` bytes from `address` on; `None` if no one entry
    /// has them all. A bus without entries does not translate.
    #[must_use]
    pub fn translate(&self, address: u64, size: u64) -> Option<u64> {
        if self.value.is_empty() {
            return Some(address);
        }
        let (child, parent, length) = self.cells;
        let [child, parent, length] = [child, parent, length].map(|cells| 4 * cells as usize);
        self.value.chunks_exact(child + parent + length).find_map(|entry| {
            let (from, entry) = entry.split_at(child);
            let (to, length) = entry.split_at(parent);
            let offset = address.checked_sub(number(from))?;
            let end = offset.checked_add(size)?;
            (end <= number(length)).then(|| number(to).checked_add(offset))?
        })
    }
}

/// The number in up to eight big-endian bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b))
}

/// A property of a checked tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property<'a> {
    /// Name.
    pub name: &'a str,
    /// Raw value.
    pub value: &'a [u8],
}

impl<'a> Property<'a> {
    /// The value as one 32-bit cell.
    #[must_use]
    pub fn u32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_be_bytes)
    }

    /// The value as two cells.
    #[must_use]
    pub fn u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_be_bytes)
    }

    /// The value as a number of one or two cells.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        self.u64().or_else(|| self.u32().map(u64::from))
    }

    /// The value as one string.
    #[must_use]
    pub fn str(&self) -> Option<&'a str> {
        match self.value.split_last() {
            Some((0, text)) if !text.contains(&0) => core::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The value as a list of strings; ends at the first that is none.
    pub fn strings(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut rest = self.value;
        core::iter::from_fn(move || {
            let found = text(rest, 0)?;
            rest = rest.get(found.len() + 1..)?;
            Some(found)
        })
    }

    /// The value as 32-bit cells; bytes behind the last whole cell are left out.
    pub fn cells(&self) -> impl Iterator<Item = u32> + use<'a> {
        let value = self.value;
        (0..value.len() / 4).map_while(move |i| be32(value, 4 * i))
    }
}
