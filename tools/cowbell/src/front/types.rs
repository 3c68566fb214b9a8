//! Types and fields of what lies in frozen heaps, by the program's debug information.

use crate::stacks::names::Names;
use crate::trace::link::CodeMapping;

/// Names the types of one image's blocks.
pub struct Typist<'a> {
    names: &'a mut Names,
    /// The code of the process.
    code: &'a [CodeMapping],
    types: Vec<String>,
}

impl<'a> Typist<'a> {
    pub fn new(names: &'a mut Names, code: &'a [CodeMapping]) -> Self {
        Self { names, code, types: Vec::new() }
    }

    /// The number of the type of a block of `asked` bytes, which these calls allocated, from the allocator outwards. Adds the fields of bytes: each is
    /// given as it is to be called, with its place in the block.
    pub fn name(
        &mut self,
        calls: &[u64],
        asked: u64,
        bytes: impl Iterator<Item = (u32, u64)>,
        fields: &mut Vec<(u32, String)>,
    ) -> Option<u32> {
        let code = |call: u64| self.code.iter().find(|code| (code.start..code.end).contains(&call));
        let module = code(*calls.first()?)?.module;
        let in_file = calls.iter().map_while(|&call| {
            let code = code(call).filter(|code| code.module == module)?;
            Some((call - code.start).saturating_add(code.offset))
        });
        let in_file: Vec<u64> = in_file.collect();
        let (layout, types) = self.names.types(module)?;
        let addresses: Vec<u64> = in_file.into_iter().map_while(|offset| layout.address(offset)).collect();
        let allocated = types.allocated(&addresses, asked)?;
        let name = types.type_name(allocated)?;
        for (byte, at) in bytes.filter(|(_, at)| *at < asked) {
            if fields.iter().all(|(known, _)| *known != byte) {
                fields.extend(types.field(allocated, asked, at).map(|field| (byte, field)));
            }
        }
        let number = self.types.iter().position(|known| *known == name).unwrap_or(self.types.len());
        if number == self.types.len() {
            self.types.push(name);
        }
        u32::try_from(number).ok()
    }

    /// The types by their numbers.
    pub fn types(self) -> Vec<String> {
        self.types
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::fixture::Directory;

    #[test]
    fn blocks_of_a_process_are_named_wherever_its_code_is_mapped() {
        let directory = Directory::new();
        let (program, blocks) = directory.typed(&["-Copt-level=3", "-Cdebuginfo=2"]);
        let mut names = Names::new();
        names.add_file(3, &program);
        // The whole file is code here: in small programs an address and its place in the file are often a page apart, and segments tell.
        let file = std::fs::read(&program).expect("the file");
        let layout =
            crate::stacks::elf::with_file(&std::fs::File::open(&program).expect("it"), |image| Some(image.layout()));
        let layout = layout.expect("a program");
        let offset_of = |address: u64| (0..file.len() as u64).find(|&offset| layout.address(offset) == Some(address));
        let start = 0x7f00_0000_0000;
        let code = [CodeMapping { module: 3, start, end: start + file.len() as u64, offset: 0 }];
        let calls = |block: &str| -> Vec<u64> {
            blocks[block].calls.iter().map_while(|&call| Some(start + offset_of(call)?)).collect()
        };
        let mut typist = Typist::new(&mut names, &code);
        let mut fields = Vec::new();
        let of = |typist: &mut Typist<'_>, block: &str, bytes: &[(u32, u64)], fields: &mut Vec<_>| {
            typist.name(&calls(block), blocks[block].len, bytes.iter().copied(), fields)
        };
        assert_eq!(of(&mut typist, "box", &[(140, 40), (100, 0), (4000, 4000)], &mut fields), Some(0));
        assert_eq!(of(&mut typist, "vec", &[(200, 104)], &mut fields), Some(1));
        assert_eq!(of(&mut typist, "box", &[], &mut fields), Some(0), "a type has one number");
        assert_eq!(of(&mut typist, "raw", &[(8, 8)], &mut fields), None);
        let fields: Vec<_> = fields.iter().map(|(byte, field)| (*byte, field.as_str())).collect();
        assert_eq!(fields, [(140, "inner.count"), (100, "id"), (200, "[1].inner.count")]);
        assert_eq!(typist.types(), ["typed::shop::Node", "[typed::shop::Node]"]);
    }
}
