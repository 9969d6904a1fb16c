//! A document as a value: headings, tables and texts whose every value knows where in the evidence it stands. Markdown
//! and HTML are printed from it.
//!
//! Invariants: no cell is empty; a value that was recorded carries a JSON pointer (RFC 6901) into `facts.json`, or the
//! name of another file of the evidence; what a document says by itself is [`said`] and holds no measurement.

/// How a text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// A name, a setting, a line of a log.
    Code,
    Strong,
}

/// A piece of text with its sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// One line, never empty.
    pub text: String,
    pub style: Style,
    /// Pointers into `facts.json` (they begin with `/`), or names of other evidence.
    pub from: Vec<String>,
}

/// Pieces that stand behind one another.
pub type Line = Vec<Text>;

/// What the document says by itself.
pub fn said(text: impl Into<String>) -> Text {
    Text {
        text: one_line(&text.into()),
        style: Style::Plain,
        from: Vec::new(),
    }
}

/// What the evidence says at `from`.
pub fn value(text: impl Into<String>, from: impl Into<String>) -> Text {
    said(text).and(from)
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() {
        "-".into()
    } else {
        words.join(" ")
    }
}

impl Text {
    /// Another place that it was made of.
    pub fn and(mut self, from: impl Into<String>) -> Text {
        let from = from.into();
        if !self.from.contains(&from) {
            self.from.push(from);
        }
        self
    }

    pub fn code(mut self) -> Text {
        if self.text != "-" {
            self.style = Style::Code;
        }
        self
    }

    pub fn strong(mut self) -> Text {
        self.style = Style::Strong;
        self
    }
}

/// A part of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// 1 to 3.
    Heading(u8, Line),
    Paragraph(Line),
    Table {
        columns: &'static [&'static str],
        /// Each has as many cells as there are columns.
        rows: Vec<Vec<Text>>,
    },
    /// `- None` when there is nothing.
    List(Vec<Line>),
    /// Lines as they are.
    Lines {
        lines: Vec<String>,
        from: String,
    },
    /// A line across, before the closing words of a part.
    Rule,
    /// Short lines that stand below one another.
    Closing(Vec<Line>),
    /// A new page, where there are pages.
    NewPage,
}

/// Collects blocks.
#[derive(Debug, Default)]
pub struct Document {
    pub blocks: Vec<Block>,
}

impl Document {
    pub fn heading(&mut self, level: u8, text: &str) {
        self.heading_of(level, vec![said(text)]);
    }

    pub fn heading_of(&mut self, level: u8, line: Line) {
        self.blocks.push(Block::Heading(level, line));
    }

    pub fn say(&mut self, text: &str) {
        self.paragraph(vec![said(text)]);
    }

    pub fn paragraph(&mut self, line: Line) {
        self.blocks.push(Block::Paragraph(line));
    }

    pub fn table<const N: usize>(
        &mut self,
        columns: &'static [&'static str; N],
        rows: impl IntoIterator<Item = [Text; N]>,
    ) {
        let mut rows: Vec<Vec<Text>> = rows.into_iter().map(Vec::from).collect();
        if rows.is_empty() {
            let mut none = vec![said("-"); N];
            if let Some(first) = none.first_mut() {
                *first = said("None");
            }
            rows.push(none);
        }
        self.blocks.push(Block::Table { columns, rows });
    }

    pub fn list(&mut self, items: Vec<Line>) {
        self.blocks.push(Block::List(items));
    }

    pub fn lines(&mut self, lines: Vec<String>, from: &str) {
        self.blocks.push(Block::Lines {
            lines,
            from: from.into(),
        });
    }

    /// Every piece of text with a style, in its order.
    pub fn texts(&self) -> Vec<&Text> {
        let mut all = Vec::new();
        for block in &self.blocks {
            match block {
                Block::Heading(_, line) | Block::Paragraph(line) => all.extend(line),
                Block::Table { rows, .. } => all.extend(rows.iter().flatten()),
                Block::List(lines) | Block::Closing(lines) => all.extend(lines.iter().flatten()),
                Block::Lines { .. } | Block::Rule | Block::NewPage => {}
            }
        }
        all
    }
}
