//! Gathers the records of a test run: `lab-results TARGET`.

fn main() -> anyhow::Result<()> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "test-e2e".into());
    let path = lab::results::gather(&target)?;
    print!("{}", lab::results::slowest(&target)?);
    if target == "test-versions" {
        let table = lab::results::versions_table(&target)?;
        let file = lab::results::folder().join("versions.md");
        std::fs::write(&file, &table)?;
        print!("{table}");
        println!(
            "the table is in {}: keep it as docs/versions.md",
            file.display()
        );
    }
    println!("results in {}", path.display());
    Ok(())
}
