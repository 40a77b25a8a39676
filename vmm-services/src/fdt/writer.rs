//! The writer: a tree into a caller's buffer, without allocation.

use super::overlay::Merge;
use super::{
    BEGIN_NODE, END, END_NODE, HEADER_BYTES, LAST_COMPATIBLE_VERSION, MAGIC, Overlay, OverlayError,
    PROP, VERSION,
};
use core::fmt;

/// An empty memory reservation block: its terminator.
const RESERVATIONS_BYTES: usize = 16;
/// Room for the names of properties.
const STRINGS_MAX: usize = 1024;

/// Why a tree could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The buffer is too small.
    BufferFull,
    /// The names of all properties together are too long.
    StringsFull,
    /// Nodes were not ended as often as begun, or a property stands outside of its node's start.
    Unbalanced,
    /// The name of a node is too long.
    NameTooLong,
    /// A name or string contains a NUL.
    EmbeddedNul,
    /// The overlay does not suit the tree.
    Overlay(OverlayError),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay(error) => return error.fmt(f),
            Self::BufferFull => "device tree does not fit its buffer",
            Self::StringsFull => "device tree has too many property names",
            Self::Unbalanced => "device tree nodes are not balanced",
            Self::NameTooLong => "device tree node name is too long",
            Self::EmbeddedNul => "device tree string contains a NUL",
        })
    }
}

impl core::error::Error for WriteError {}

/// Writes a device tree front to back.
///
/// Faults are kept until [`FdtWriter::finish`], so that the calls read like the tree they write.
pub struct FdtWriter<'b> {
    buffer: &'b mut [u8],
    /// End of what has been written to `buffer`.
    at: usize,
    strings: [u8; STRINGS_MAX],
    strings_len: usize,
    depth: usize,
    /// Whether the innermost node may still get properties.
    properties_allowed: bool,
    fault: Option<WriteError>,
    /// What is added to the nodes. Taken out while its own nodes are written.
    merge: Option<Merge<'b>>,
}

impl<'b> FdtWriter<'b> {
    /// Starts a tree in `buffer` and begins its root node.
    #[must_use]
    pub fn new(buffer: &'b mut [u8]) -> Self {
        let mut writer = Self {
            buffer,
            at: 0,
            strings: [0; STRINGS_MAX],
            strings_len: 0,
            depth: 0,
            properties_allowed: false,
            fault: None,
            merge: None,
        };
        writer.put(&[0; HEADER_BYTES + RESERVATIONS_BYTES]);
        writer.begin_node("");
        writer
    }

    /// Starts a tree in `buffer` to whose nodes an overlay is added.
    #[must_use]
    pub fn with_overlay(buffer: &'b mut [u8], overlay: Option<Overlay<'b>>) -> Self {
        let mut writer = Self::new(buffer);
        writer.merge = overlay.map(Merge::new);
        writer
    }

    fn fail(&mut self, fault: WriteError) {
        self.fault.get_or_insert(fault);
    }

    /// Appends `bytes` and pads to a cell.
    fn put(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        let padded = end.next_multiple_of(4);
        match self.buffer.get_mut(self.at..padded) {
            Some(room) => {
                let (value, padding) = room.split_at_mut(bytes.len());
                value.copy_from_slice(bytes);
                padding.fill(0);
                self.at = padded;
            }
            None => self.fail(WriteError::BufferFull),
        }
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// Appends text with its terminator and pads to a cell.
    fn put_text(&mut self, text: &str) {
        if text.contains('\0') {
            return self.fail(WriteError::EmbeddedNul);
        }
        let length = text.len() + 1;
        match self.buffer.get_mut(self.at..self.at + length.next_multiple_of(4)) {
            Some(room) => {
                room.fill(0);
                let (value, _) = room.split_at_mut(text.len());
                value.copy_from_slice(text.as_bytes());
                self.at += room.len();
            }
            None => self.fail(WriteError::BufferFull),
        }
    }

    /// Begins a child of the current node.
    pub fn begin_node(&mut self, name: &str) {
        self.end_properties();
        if let Some(Err(fault)) = self.merge.as_mut().map(|merge| merge.enter(name)) {
            self.fail(fault);
        }
        self.put_u32(BEGIN_NODE);
        self.put_text(name);
        self.depth += 1;
        self.properties_allowed = true;
    }

    /// Begins the child `name@address`.
    pub fn begin_node_at(&mut self, name: &str, address: u64) {
        match NameBuffer::new(format_args!("{name}@{address:x}")).as_ref().and_then(NameBuffer::get)
        {
            Some(text) => self.begin_node(text),
            None => self.fail(WriteError::NameTooLong),
        }
    }

    /// Adds a string property with the path `/node@address`.
    pub fn property_node_path(&mut self, name: &str, node: &str, address: u64) {
        match NameBuffer::new(format_args!("/{node}@{address:x}"))
            .as_ref()
            .and_then(NameBuffer::get)
        {
            Some(text) => self.property_str(name, text),
            None => self.fail(WriteError::NameTooLong),
        }
    }

    /// Ends the current node.
    pub fn end_node(&mut self) {
        self.end_properties();
        if let Some(mut merge) = self.merge.take() {
            merge.add_nodes(self);
            merge.leave();
            self.merge = Some(merge);
        }
        match self.depth.checked_sub(1) {
            Some(depth) => self.depth = depth,
            None => self.fail(WriteError::Unbalanced),
        }
        self.put_u32(END_NODE);
    }

    /// Ends the properties of the current node, unless a child has ended them.
    fn end_properties(&mut self) {
        if let Some(mut merge) = self.merge.take_if(|_| self.properties_allowed) {
            merge.add_properties(self);
            self.merge = Some(merge);
        }
        self.properties_allowed = false;
    }

    fn begin_property(&mut self, name: &str, length: usize) {
        if !self.properties_allowed {
            return self.fail(WriteError::Unbalanced);
        }
        if let Some(Err(fault)) = self.merge.as_ref().map(|merge| merge.check_property(name)) {
            self.fail(fault);
        }
        let name_at = self.intern(name);
        match (u32::try_from(length), name_at) {
            (Ok(length), Some(name_at)) => {
                self.put_u32(PROP);
                self.put_u32(length);
                self.put_u32(name_at);
            }
            (Err(_), _) => self.fail(WriteError::BufferFull),
            (_, None) => self.fail(WriteError::StringsFull),
        }
    }

    /// Offset of `name` in the strings block, where each name stands once.
    fn intern(&mut self, name: &str) -> Option<u32> {
        if name.contains('\0') {
            self.fail(WriteError::EmbeddedNul);
        }
        let mut at = 0;
        for known in self.strings.get(..self.strings_len)?.split_inclusive(|&b| b == 0) {
            if known.strip_suffix(&[0]) == Some(name.as_bytes()) {
                return u32::try_from(at).ok();
            }
            at += known.len();
        }
        let room = self.strings.get_mut(at..at + name.len() + 1)?;
        let (text, terminator) = room.split_at_mut(name.len());
        text.copy_from_slice(name.as_bytes());
        terminator.fill(0);
        self.strings_len += name.len() + 1;
        u32::try_from(at).ok()
    }

    /// Adds a property with raw bytes.
    pub fn property(&mut self, name: &str, value: &[u8]) {
        self.begin_property(name, value.len());
        self.put(value);
    }

    /// Adds a property without value.
    pub fn property_empty(&mut self, name: &str) {
        self.property(name, &[]);
    }

    /// Adds a one-cell property.
    pub fn property_u32(&mut self, name: &str, value: u32) {
        self.property(name, &value.to_be_bytes());
    }

    /// Adds a two-cell property.
    pub fn property_u64(&mut self, name: &str, value: u64) {
        self.property(name, &value.to_be_bytes());
    }

    /// Adds a property of 32-bit cells.
    pub fn property_cells(&mut self, name: &str, cells: &[u32]) {
        self.begin_property(name, 4 * cells.len());
        for &cell in cells {
            self.put_u32(cell);
        }
    }

    /// Adds a property of 64-bit numbers, as `reg` has them with two cells each.
    pub fn property_u64s(&mut self, name: &str, numbers: &[u64]) {
        self.begin_property(name, 8 * numbers.len());
        for number in numbers {
            self.put(&number.to_be_bytes());
        }
    }

    /// Adds a string property.
    pub fn property_str(&mut self, name: &str, text: &str) {
        self.begin_property(name, text.len() + 1);
        self.put_text(text);
    }

    /// Adds a property with a list of strings.
    pub fn property_strs(&mut self, name: &str, texts: &[&str]) {
        let length = texts.iter().map(|t| t.len() + 1).sum();
        self.begin_property(name, length);
        let Some(room) = self.buffer.get_mut(self.at..self.at + length.next_multiple_of(4)) else {
            return self.fail(WriteError::BufferFull);
        };
        room.fill(0);
        self.at += room.len();
        let mut rest = room;
        for text in texts {
            let (value, tail) = rest.split_at_mut(text.len() + 1);
            value.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
            rest = tail;
        }
        if texts.iter().any(|t| t.contains('\0')) {
            self.fail(WriteError::EmbeddedNul);
        }
    }

    /// Ends the root node and the tree; returns its size in bytes.
    ///
    /// # Errors
    /// The first fault of all calls.
    pub fn finish(mut self) -> Result<usize, WriteError> {
        self.end_node();
        self.put_u32(END);
        if self.depth != 0 {
            self.fail(WriteError::Unbalanced);
        }
        if let Some(Err(fault)) = self.merge.as_ref().map(Merge::check_targets) {
            self.fail(fault);
        }
        let structure_at = HEADER_BYTES + RESERVATIONS_BYTES;
        let strings_at = self.at;
        let strings_len = self.strings_len;
        let end = strings_at + strings_len;
        match (self.buffer.get_mut(strings_at..end), self.strings.get(..strings_len)) {
            (Some(room), Some(strings)) => room.copy_from_slice(strings),
            _ => self.fail(WriteError::BufferFull),
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let header = [
            MAGIC as usize,
            end,
            structure_at,
            strings_at,
            HEADER_BYTES,
            VERSION as usize,
            LAST_COMPATIBLE_VERSION as usize,
            0,
            strings_len,
            strings_at - structure_at,
        ];
        for (room, field) in self.buffer.chunks_exact_mut(4).zip(header) {
            let field = u32::try_from(field).map_err(|_| WriteError::BufferFull)?;
            room.copy_from_slice(&field.to_be_bytes());
        }
        Ok(end)
    }
}

/// A short name under construction.
struct NameBuffer {
    bytes: [u8; 64],
    length: usize,
}

impl NameBuffer {
    /// Formats a name; `None` when it is too long.
    fn new(name: fmt::Arguments<'_>) -> Option<Self> {
        let mut buffer = Self { bytes: [0; 64], length: 0 };
        fmt::Write::write_fmt(&mut buffer, name).ok()?;
        Some(buffer)
    }

    fn get(&self) -> Option<&str> {
        core::str::from_utf8(self.bytes.get(..self.length)?).ok()
    }
}

impl fmt::Write for NameBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}
